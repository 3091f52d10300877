"""Benchmark of groups: what the rule sees are means, and who spoiled them."""

from __future__ import annotations

import numpy as np

from benchmarks._robust_grid import Federation, rule_of
from benchmarks._robust_run import Run
from benchmarks._robust_runs import _runs
from benchmarks.secure_groups import CELLS, GROUPED, PLAIN, grid
from strategies.secure.sizes import objection


def test_the_rule_gets_the_mean_of_each_group():
    federation = Federation(None, 1, 1, clients=12, group=3)
    [run] = _runs(federation, [(GROUPED, "none")])
    assert len(run.groups) == 4
    rows = np.arange(24.0, dtype=np.float32).reshape(12, 2)
    bad = [0, 5]
    means, honest, spoiled = run._means(rows, list(range(12)), bad)
    for i, group in enumerate(run.groups.members):
        members = [int(name) for name in group]
        np.testing.assert_allclose(means[i], rows[members].mean(axis=0))
        assert (i in spoiled) is bool(set(members) & set(bad))
        assert (i in honest) is not (i in spoiled)


def test_an_attacker_spoils_its_group_and_the_group_gets_no_share():
    federation = Federation(None, 1, 1, clients=15, group=3)
    [run] = _runs(federation, [(GROUPED, "IPM100")])
    rng, flat = np.random.default_rng(0), np.zeros(40, np.float32)
    goal = rng.normal(size=40)
    for number in range(1, 7):
        run.memory["round"] = number
        rows = (goal + 0.3 * rng.normal(size=(15, 40))).astype(np.float32)
        update = run.step(rows, list(range(15)), [4], flat, key=1)
        assert np.dot(update, goal) > 0.5 * np.dot(goal, goal)
    rejected, seen = run.counts[1]
    assert (rejected, seen) == (3, 3)  # one group in each round that counts
    assert run.counts[0, 1] == 12


def test_every_cell_has_enough_groups_and_both_views():
    for clients, f, size in CELLS:
        assert objection(clients, size, f) is None
        tasks = list(grid(clients, f, size, None, quick=True))
        assert [t[0].group for t in tasks] == [0, size]
        assert [{rule for rule, _ in wanted} for _, wanted in tasks] == [
            {PLAIN},
            {GROUPED},
        ]


def test_without_groups_a_run_is_what_it_was():
    run = Run(PLAIN, "none", rule_of(PLAIN, 1))
    assert run.groups is None
