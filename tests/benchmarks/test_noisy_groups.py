"""Benchmark of noise in groups: who is malicious, and what the rule left out."""

from __future__ import annotations

import numpy as np

from benchmarks import noisy_groups
from benchmarks.noisy_groups import Cell, data, job_of, run
from strategies import stack
from strategies.robust.rule import Decision


def test_every_job_of_the_benchmark_is_one_that_may_run():
    for size in (0, *noisy_groups.SIZES):
        stack.check(job_of(8.0, size).replace({"round.min-nodes": noisy_groups.NODES}))


def test_each_image_is_one_nodes_or_in_the_test():
    x, y, shares = data(0)
    assert x.shape == (len(y), noisy_groups.SHAPE[0])
    rows = sorted(i for share in shares for i in share)
    assert rows == list(range(noisy_groups.TEST, len(y)))


class LongestOut:
    """A rule without the longest row."""

    def __init__(self, f, *, temporal):
        assert (f, temporal) == (2, False)

    def __call__(self, rows, names):
        norms = np.linalg.norm(rows, axis=1)
        shares = np.where(norms < norms.max(), 1 / (len(rows) - 1), 0)
        return Decision(shares @ np.array(rows), shares)


def test_spoilt_groups_are_those_with_the_largest_integers(monkeypatch):
    monkeypatch.setattr(noisy_groups, "WFAgg", LongestOut)
    monkeypatch.setattr(noisy_groups, "NODES", 20)
    monkeypatch.setattr(noisy_groups, "ROUNDS", 3)
    cell = Cell(job_of(20.0, 4), attackers=1)
    assert 0 <= run(cell, 0) <= 1
    assert len(cell.spoilt) == len(cell.left_out) == 3 * 5
    assert sum(cell.spoilt) == 3  # one group in each round
    assert cell.part(spoilt=True) == "3 of 3"
    assert cell.part(spoilt=False) == "0 of 12"
