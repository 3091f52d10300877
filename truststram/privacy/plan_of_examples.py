"""The plan for DP-SGD: every node has its own noise, by its number of examples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..job import Job
from ..task import Node
from ..tasks import load_task
from .plan_text import verdict

__all__ = ["of_examples"]

REMEDY = "use more data, larger batches, a smaller model or a larger epsilon"
# Times that a batch is doubled in the search for one that bears the noise.
BATCHES = 12


def of_examples(job: Job, nodes: int, size: int) -> dict[str, Any]:
    """Return the plan for DP-SGD: every node has its own noise."""
    from ..tasks import dp_plan

    counts = sorted(_counts(job, nodes))
    chosen = sorted({counts[0], counts[len(counts) // 2], counts[-1]})
    rows = [_row(job, n, size) for n in chosen]
    middle = _row(job, counts[len(counts) // 2], size)
    ledger = dp_plan.node_ledger(job, middle["examples"], size)
    batch = _bearable_batch(job, middle["examples"], size)
    advice = "No batch size gives a noise / signal of 1 at this budget."
    if batch:
        advice = f"At this budget train.batch-size = {batch} gives about 1."
    return {
        "guarantee": f"A node with {middle['examples']} examples, after all "
        f"{job.train.rounds} rounds: {ledger.describe()}",
        "epsilon": job.privacy.epsilon,
        "delta": job.privacy.delta,
        "mechanism": "gaussian",
        "per-node": rows,
        "noise-to-signal": middle["noise-to-signal"],
        "verdict": verdict(middle["noise-to-signal"], REMEDY, "step"),
        "bearable": {"batch-size": batch},
        "advice": advice,
    }


def _counts(job: Job, nodes: int) -> Iterator[int]:
    """Yield the number of training examples of each simulated node."""
    task = load_task(job.task.name)
    for i in range(nodes):
        node = Node(str(i), i, nodes, job.data.path or None)
        yield len(task.train_data(job, node))


def _row(job: Job, n: int, size: int) -> dict[str, Any]:
    """Return the noise of a node with n examples."""
    from ..tasks import dp_plan

    release = dp_plan.planned_release(job, n, size)
    batch = min(job.train.batch_size, n)
    return {
        "examples": n,
        "steps": job.train.rounds * dp_plan.steps_per_round(job, n),
        "rate": release.sampling.rate,
        "noise-multiplier": release.scale,
        "noise-to-signal": release.scale * math.sqrt(size) / batch,
    }


def _bearable_batch(job: Job, n: int, size: int) -> int:
    """Return about the least batch size with a ratio of 1; 0 if there is none."""
    batch = job.train.batch_size
    for _ in range(BATCHES):
        batch = min(batch, n)
        row = _row(job.replace({"train.batch-size": batch}), n, size)
        if row["noise-to-signal"] <= 1:
            return batch
        if batch == n:
            break
        batch *= 2
    return 0
