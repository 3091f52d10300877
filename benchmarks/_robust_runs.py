"""Federated training under attack, all rules and attacks of one federation at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks._robust_data import CLASSES, EXAMPLES, Split, split
from benchmarks._robust_grid import TRAINING, Federation, Outcome, rule_of
from benchmarks._robust_run import Run
from benchmarks._robust_training import CNN, MLP
from strategies.secure.groups import Groups
from truststram.records import Float32
from truststram.rng import derive

__all__ = ["simulate"]

STEPS, BATCH, LR = 8, 32, 0.2


def _runs(federation: Federation, wanted: Sequence[tuple[str, str]]) -> list[Run]:
    """Return the runs of all rules that can be used with so many attackers."""
    f = federation.f if federation.assumed is None else federation.assumed
    names, groups = [str(i) for i in range(federation.clients)], None
    if federation.group:
        groups = Groups.of(names, federation.group, f"seed {federation.seed}")
    runs = [Run(name, attack, rule_of(name, f), groups) for name, attack in wanted]
    cohort = int(federation.clients * federation.participation)
    voters = cohort if groups is None else len(groups)
    return [run for run in runs if run.rule.refusal(voters) is None]


def simulate(
    federation: Federation, wanted: Sequence[tuple[str, str]]
) -> list[Outcome]:
    """Train one model for every (rule, attack) and return what came out.

    All runs share the data, the initial model, the minibatches and the malicious
    clients, which are drawn at random. Rules that refuse are left out.
    """
    seed, network = federation.seed, MLP if federation.network == "mlp" else CNN
    many = federation.clients
    data = split(federation.alpha, seed, federation.validation, many)
    runs = _runs(federation, wanted)
    order = derive(seed, "robust-accuracy", "malicious").permutation(many)
    bad = sorted(int(i) for i in order[: federation.f])
    start = network.initial(derive(seed, "robust-accuracy", "model"))
    flat = np.tile(start, (len(runs), 1))
    updates = np.zeros((len(runs), many, network.size), np.float32)
    for number in range(federation.rounds):
        clients = _cohort(federation, number)
        for client in clients:
            _train(federation, runs, client, client in bad, number, data, flat, updates)
        for i, run in enumerate(runs):
            run.memory["round"] = number + 1
            if run.broken:
                continue
            names = run.cohort(number + 1, clients)
            truth = [] if run.attack == "none" else bad
            flat[i] += run.step(updates[i][names], names, truth, flat[i], seed)
            if federation.quarantine:
                run.leave_out(number + 1, federation.quarantine)
    found = network.accuracy(torch.tensor(flat), data.test_x, data.test_y)
    with np.errstate(invalid="ignore"):
        rates = [run.counts[:, 0] / run.counts[:, 1] for run in runs]
    return [
        Outcome(
            federation,
            run.name,
            run.attack,
            accuracy,
            false=float(rate[0]),
            true=float(rate[1]),
            quarantined=_left_out(run, bad),
        )
        for run, accuracy, rate in zip(runs, found, rates, strict=True)
    ]


def _left_out(run: Run, bad: Sequence[int]) -> tuple[int, int]:
    """Return how many honest and malicious clients were ever in quarantine."""
    malicious = 0 if run.attack == "none" else len(run.quarantined & set(bad))
    return len(run.quarantined) - malicious, malicious


def _cohort(federation: Federation, number: int) -> list[int]:
    """Return the clients of a round."""
    many = federation.clients
    if federation.participation == 1:
        return list(range(many))
    rng = derive(federation.seed, "robust-accuracy", "cohort", number)
    size = int(many * federation.participation)
    return sorted(int(i) for i in rng.permutation(many)[:size])


def _steps(federation: Federation, client: int) -> int:
    """Return how many minibatches a client trains on in a round."""
    if not federation.unequal:
        return STEPS
    rng = derive(federation.seed, "robust-accuracy", "steps", client)
    return int(rng.integers(2, STEPS + 1))


def _train(
    federation: Federation,
    runs: list[Run],
    client: int,
    malicious: bool,
    number: int,
    data: Split,
    flat: Float32,
    updates: Float32,
) -> None:
    """Write one client's updates of all runs in which it trains."""
    network = MLP if federation.network == "mlp" else CNN
    flips = [malicious and run.attack == "LF" for run in runs]
    used = [
        i
        for i, run in enumerate(runs)
        if not run.broken and (not malicious or run.attack in ("none", *TRAINING))
    ]
    if not used:
        return
    rng = derive(federation.seed, "robust-accuracy", "batches", number, client)
    steps = _steps(federation, client)
    held = EXAMPLES if steps == STEPS else EXAMPLES // STEPS * steps
    rows = torch.tensor(rng.permutation(held)[: steps * BATCH])
    x = network.cut(data.x[client][rows]).reshape(steps, BATCH, network.patches, -1)
    labels = data.y[client][rows].reshape(steps, 1, BATCH)
    if malicious:
        flipped = torch.tensor([flips[i] for i in used])[None, :, None]
        labels = torch.where(flipped, CLASSES - 1 - labels, labels)
    target: Tensor = torch.nn.functional.one_hot(labels, CLASSES).float()
    trained = network.train(torch.tensor(flat[used]), x, target, LR)
    updates[used, client] = trained.numpy()
