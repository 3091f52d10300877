"""What it costs that the robust rule sees means of groups only: Fashion-MNIST.

Secure sums inside fixed groups of g clients show the rule K / g means; ``wfagg`` then
uses distance and cosine only. Compared with ``wfagg`` on plaintext updates of the same
clients, attackers and minibatches: 3 of 30 in groups of 3, 4 of 40 in groups of 4.

Goals: IID at most 2 points below plaintext under the worst attack, and in the mean over
all attacks; with unequal clients (Dirichlet 0.5) in the mean. There an attacker that
stays inside the spread of the honest updates (MMu) is not seen in the means, and f of K
clients pull the model as they would pull the plain mean: that worst case is told, and
differs by points from seed to seed.

``--data DIR``, or TRUSTSTRAM_DATA, names the folder with the original files; otherwise
the Debian package dataset-fashion-mnist, then the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks._report import Line, line, main
from benchmarks._robust_data import check
from benchmarks._robust_grid import Federation
from benchmarks._robust_pool import Task, run, take_folder
from benchmarks._robust_table import Table

# Clients, attackers, size of the groups.
CELLS = ((30, 3, 3), (40, 4, 4))
# Fresh: nothing was chosen on them.
SEEDS, SEEDS_QUICK = (330, 331), (0,)
ATTACKS = ("none", "SF1", "IPM.5", "IPM100", "ALIE-opt", "MMu")
ATTACKS_QUICK = ("none", "SF1", "IPM100", "ALIE-opt")
PLAIN, GROUPED = "wfagg", "wfagg of groups"
SETUP = "MLP 196-32-10, 300 examples a client, 30 rounds x 8 steps of 32, lr 0.2"
POINTS = 2


def lines(quick: bool) -> Iterator[Line]:
    """Yield all lines; with ``quick`` one cell, IID, one seed, few attacks."""
    check()
    cells = CELLS[:1] if quick else CELLS
    alphas = (None,) if quick else (None, 0.5)
    tasks = [t for cell in cells for alpha in alphas for t in grid(*cell, alpha, quick)]
    outcomes = [o for found in run("secure_groups", tasks) for o in found]
    for clients, _, size in cells:
        some = [o for o in outcomes if o.federation.clients == clients]
        table = Table(some)
        for cell in table.cells:
            named = f"{clients} clients in groups of {size}, {cell}"
            yield from compared(table, cell, named)


def grid(
    clients: int, f: int, size: int, alpha: float | None, quick: bool
) -> Iterator[Task]:
    """Yield every federation of a cell twice: plaintext, and in groups."""
    attacks = ATTACKS_QUICK if quick else ATTACKS
    for seed in SEEDS_QUICK if quick else SEEDS:
        for group, rule in ((0, PLAIN), (size, GROUPED)):
            federation = Federation(
                alpha, f, seed, validation=quick, clients=clients, group=group
            )
            yield federation, [(rule, attack) for attack in attacks]


def compared(table: Table, cell: str, named: str) -> Iterator[Line]:
    """Yield the worst case and the mean over the attacks."""
    (ours, attack), (peer, other) = (table.worst(cell, r) for r in (GROUPED, PLAIN))
    note = f"{ours - peer:+.1f} points; {SETUP}; of {', '.join(table.attacks)}; ours: "
    note += f"under {attack}; peer: plaintext wfagg, under {other}"
    goal = f"ours >= {peer - POINTS:.4g}" if cell.startswith("IID") else None
    yield line(
        *(f"worst case, {named}", ours, peer),
        goal=goal,
        unit="%",
        seeds=table.seeds,
        note=note,
    )
    ours, peer = (
        float(np.mean([table.mean(cell, rule, attack) for attack in table.attacks]))
        for rule in (GROUPED, PLAIN)
    )
    yield line(
        *(f"mean over attacks, {named}", ours, peer),
        goal=f"ours >= {peer - POINTS:.4g}",
        unit="%",
        seeds=table.seeds,
        note=f"{ours - peer:+.1f} points; as above; peer: plaintext wfagg",
    )


if __name__ == "__main__":
    take_folder()
    main(__doc__, lines)
