"""What groups are good for when every sum has the noise of differential privacy.

200 nodes share digits (IID) and train a softmax regression; each adds its share of the
noise, of which one sum of all, or the sum of each group, has all that is accounted for.
Malicious nodes send the largest integers that a sum takes, against their own update:
there is room for 13 standard deviations of a node's noise on every coordinate, and in
one sum nobody can tell that from noise. They leave out their own noise, too: all runs
are planned for two such nodes (``secure.colluders``, ``robust.f``). Goal: where the
noise of a group's mean is at most about 2.5 times the longest mean (``JUDGED`` of
``strategies.mechanisms.distributed``), WFAgg across groups is better than one sum with
two such nodes.

Sums are computed without masks, which change no digit of them. Accuracies are of the
average model of the second half of the rounds, as runs evaluate it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from benchmarks._report import Line, line, main, progress
from strategies.mechanisms.distributed import distributed_plan, groups_of
from strategies.mechanisms.encoder import SkellamEncoder
from strategies.mechanisms.plan import MOST_RATE, RATE
from strategies.robust.rule import AUTO
from strategies.robust.wfagg import WFAgg
from strategies.secure.groups import Groups
from truststram.job import Job
from truststram.rng import derive

Doubles = NDArray[np.float64]

NODES, ROUNDS, TEST = 200, 10, 360
SIZES, EPSILONS, ATTACKERS = (40, 20), (8.0, 20.0), (0, 1, 2)
BORNE = max(ATTACKERS)  # the noise is sized for the others
SEEDS, SEEDS_QUICK = (0, 1, 2), (0,)
SHAPE = 65, 10  # with a bias
STEPS, LOCAL_RATE, MOMENTUM = 10, 0.5, 0.9


@dataclass
class Cell:
    """Runs under one setting: accuracies, and what the rule left out."""

    job: Job
    attackers: int
    accuracies: list[float] = field(default_factory=list)
    spoilt: list[bool] = field(default_factory=list)  # of each group in each round:
    left_out: list[bool] = field(default_factory=list)

    def part(self, *, spoilt: bool) -> str:
        """Return how many of the spoilt, or the other, groups were left out."""
        found = [
            x for x, y in zip(self.left_out, self.spoilt, strict=True) if y is spoilt
        ]
        return f"{sum(found)} of {len(found)}"


def lines(quick: bool) -> Iterator[Line]:
    """Yield all lines; with ``quick`` one epsilon, one size and one seed."""
    seeds = SEEDS_QUICK if quick else SEEDS
    for epsilon in EPSILONS[1:] if quick else EPSILONS:
        for attackers in ATTACKERS:
            alone = trained(job_of(epsilon, 0), attackers, seeds)
            for size in SIZES[:1] if quick else SIZES:
                grouped = trained(job_of(epsilon, size), attackers, seeds)
                yield compared(grouped, alone, seeds)


def job_of(epsilon: float, size: int) -> Job:
    """Return a job in which all nodes must answer."""
    return Job.of(
        {
            "privacy.mechanism": "skellam",
            "privacy.trust": "distributed",
            "privacy.epsilon": epsilon,
            "secure.scheme": "secagg",
            "secure.group-size": size,
            "secure.min-cohort": size or NODES,
            "secure.max-cohort": NODES,
            "secure.colluders": BORNE,
            "robust.rule": "wfagg" if size else "mean",
            "robust.f": BORNE if size else AUTO,
            "train.rounds": ROUNDS,
        }
    )


def compared(grouped: Cell, alone: Cell, seeds: tuple[int, ...]) -> Line:
    """Return the line of one setting."""
    job = grouped.job
    plan = distributed_plan(job, SHAPE[0] * SHAPE[1])
    size, epsilon = job.secure.group_size, job.privacy.epsilon
    ratio = plan.ratio(size)
    ours, peer = (100 * float(np.mean(c.accuracies)) for c in (grouped, alone))
    judged = grouped.attackers == 2 and epsilon == 20
    return line(
        f"{grouped.attackers} malicious, groups of {size}, epsilon {epsilon:g}",
        ours,
        peer,
        goal=f"ours >= {peer:.4g}" if judged else None,
        unit="%",
        seeds=list(seeds),
        note=(
            f"wfagg across {NODES // size} groups; peer: one sum of all {NODES}; noise "
            f"of a group's mean {ratio:.3g} times the longest; left out: "
            f"{grouped.part(spoilt=True)} spoilt groups, {grouped.part(spoilt=False)} "
            f"others; {ROUNDS} rounds, all answer"
        ),
    )


@cache
def trained(job: Job, attackers: int, seeds: tuple[int, ...]) -> Cell:
    """Run a federation once a seed."""
    size = job.secure.group_size
    progress(f"noisy_groups: epsilon {job.privacy.epsilon:g}, {size=}, {attackers=}")
    cell = Cell(job, attackers)
    for seed in seeds:
        cell.accuracies.append(run(cell, seed))
    return cell


def run(cell: Cell, seed: int) -> float:
    """Train; return the accuracy on test data."""
    x, y, shares = data(seed)
    plan = distributed_plan(cell.job, SHAPE[0] * SHAPE[1])
    encoder = SkellamEncoder(plan, insecure=True)
    count = groups_of(cell.job, NODES)
    groups = Groups.of([str(i) for i in range(NODES)], NODES // count, str(seed))
    rule = WFAgg(max(cell.job.robust.f, 0), temporal=False)
    rate = min(MOST_RATE, RATE / plan.mean_std(NODES, count))
    rng = derive(seed, "noise")
    model, speed, late = np.zeros(SHAPE), np.zeros(SHAPE), []
    for number in range(ROUNDS):
        sent = np.empty((NODES, model.size), np.int64)
        for node, rows in enumerate(shares):
            update = local(model, x[rows], y[rows]).ravel()
            sent[node] = encoder.encode(update, rng)
            if node < cell.attackers:
                sent[node] = np.where(update > 0, 0, 2 * encoder.half)
        members = [[int(name) for name in group] for group in groups.members]
        means = [
            encoder.decode_sum(sent[who].sum(axis=0), len(who)) / len(who)
            for who in members
        ]
        step: NDArray[np.floating] = means[0]
        if cell.job.secure.group_size:
            decision = rule(
                [mean.astype(np.float32) for mean in means], list(map(str, members))
            )
            step = decision.update
            cell.left_out += [bool(share == 0) for share in decision.shares]
            cell.spoilt += [min(who) < cell.attackers for who in members]
        speed = MOMENTUM * speed + step.reshape(SHAPE)
        model = model + rate * speed
        if 2 * number >= ROUNDS:
            late.append(model)
    test = slice(0, TEST)
    scores = x[test] @ np.mean(late, axis=0)
    return float((scores.argmax(axis=1) == y[test]).mean())


def data(seed: int) -> tuple[Doubles, NDArray[np.int64], list[NDArray[np.int64]]]:
    """Return images and digits, shuffled, and which are each node's."""
    x, y = load_digits(return_X_y=True)
    order = derive(seed, "split").permutation(len(x))
    x = np.c_[x / 16, np.ones(len(x))][order]
    return x, y[order], np.array_split(np.arange(TEST, len(x)), NODES)


def local(model: Doubles, x: Doubles, y: NDArray[np.int64]) -> Doubles:
    """Return a node's update after a few steps of gradient descent."""
    new, labels = model.copy(), np.eye(SHAPE[1])[y]
    for _ in range(STEPS):
        scores = x @ new
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        new -= LOCAL_RATE * x.T @ (likely - labels) / len(x)
    return new - model


if __name__ == "__main__":
    main(__doc__, lines)
