"""Federated evaluation by a plan: its program ``evaluate``, on the model of a round.

Plans compiled with ``tff.evaluation`` have it
(``tff.learning.algorithms.build_fed_eval``). In a silo ``work`` sums cross-entropy,
right answers and examples over the held-out data; the server adds silos up, and
``report`` and ``update`` make TFF's metrics of the sums.

Mathematics
-----------
Silo k has sums ``(l_k, c_k, n_k)`` and sends ``l_k / n_k``, ``c_k / n_k`` and ``n_k``:
loss, accuracy and ``num-examples``, as a silo with torch does
(:meth:`truststram.tasks.torch_task.TorchTask.evaluate`). Every layer therefore reads
them as it reads those, and silos of both kinds can be in one evaluation. The server
restores the sums, counts rounded to integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from truststram.errors import ProtocolError, RunError
from truststram.job import Job
from truststram.task import Task

from .leaves import Leaves
from .manifest import Program
from .part import Part
from .plan import Plan

__all__ = ["NOT_ASKED", "Evaluation", "why_torch", "with_what"]

# The leaves of work, as tff_bridge.classifier_tf makes them, and what of them is sent.
_SUMS = {"loss_sum": "float32", "correct": "int64", "examples": "int64"}
_SENT = {"loss", "accuracy", "num-examples"}
METRICS = {"loss", "accuracy"}
# strategies/secure/refusals.py
NOT_ASKED = "nodes of a secure sum are not asked"
# The loss of one silo, summed: sums of 2^20 silos then are finite in float32.
LARGEST = float(np.finfo(np.float32).max) / 2**20
# Examples of one silo: sums of any number of silos then fit 64 bits.
MOST = 10**9
# Rows at a time: bounds memory, changes no result. As many as torch silos take.
AT_ONCE = 1024


class Evaluation(Part):
    """A plan whose evaluation can be run over Flower; make it with :meth:`of`.

    ``prepared`` is the model.
    """

    name = "evaluate"

    @property
    def batch_size(self) -> int:
        """Rows that ``work`` is given at a time."""
        return AT_ONCE

    @staticmethod
    def obstacles(plan: Plan) -> list[str]:
        """Return why the plan cannot evaluate over Flower; empty if it can."""
        return _obstacles(plan)

    @cached_property
    def finished(self) -> dict[str, int]:
        """The place of each metric of a round among what ``update`` tells."""
        return _finished(self.program)

    def metrics(self, leaves: Leaves) -> dict[str, float]:
        """Return what a silo sends instead of the leaves of its ``work``.

        Raises
        ------
        RunError
            If no example was counted.
        """
        loss, correct, examples = (leaf.item() for leaf in leaves)
        if examples < 1:
            raise RunError("tff.plan: the plan's evaluation counted no example")
        told = {"loss": loss / examples, "accuracy": correct / examples}
        return {**told, "num-examples": examples}

    def sums(self, metrics: Mapping[str, object]) -> tuple[float, int, int]:
        """Return the sums of a silo, in the order of the leaves, from its metrics.

        Parameters
        ----------
        metrics : mapping
            Untrusted.

        Raises
        ------
        ProtocolError
            ``metric-keys`` for other metrics; ``metric-value`` for what is no number, a
            loss below 0 or with a sum above :data:`LARGEST`, or an accuracy outside
            [0, 1]; ``num-examples`` for what is no positive integer.
        """
        if metrics.keys() != _SENT:
            raise ProtocolError("metric-keys", "not loss, accuracy and num-examples")
        loss, accuracy = _number(metrics["loss"]), _number(metrics["accuracy"])
        count = _number(metrics["num-examples"])
        if not (1 <= count <= MOST and count.is_integer()):
            raise ProtocolError("num-examples", f"expected an integer from 1 to {MOST}")
        if not 0 <= accuracy <= 1:
            raise ProtocolError("metric-value", "the accuracy is outside [0, 1]")
        if not 0 <= loss * count <= LARGEST:
            raise ProtocolError("metric-value", "the loss is below 0, or too large")
        return loss * count, round(accuracy * count), int(count)

    def total(self, terms: Sequence[tuple[float, int, int]]) -> Leaves:
        """Return the sums of several silos as the leaves that ``report`` takes."""
        sums = map(sum, zip(*terms, strict=True))
        return [np.asarray(*x) for x in zip(sums, _SUMS.values(), strict=True)]


def _obstacles(plan: Plan) -> list[str]:
    if "evaluate" not in plan.programs:
        return ["the plan was compiled without tff.evaluation"]
    program = plan.programs["evaluate"]
    data = program.pieces["work"].inputs[0]
    prepared = program.pieces["prepare"].outputs
    sent = [(x.path.rpartition("/")[2], x.dtype, x.shape) for x in program.sent]
    if (
        sent != [(name, dtype, ()) for name, dtype in _SUMS.items()]
        or any(leaf.slot != "accumulate" for leaf in program.sent)
        or not program.additive
        or not _finished(program).keys() >= METRICS
    ):
        return ["its evaluation does not make loss and accuracy of silos' sums"]
    if (program.data, len(data.elements)) != (1, 2):
        return ["its evaluation takes other data than batches of (x, y)"]
    model = [("float32", shape) for shape in plan.parameters.values()]
    if [x.kind for x in prepared] != model or not program.parameters:
        return ["its evaluation does not send the model to the silos as it is"]
    return []


def _number(value: object) -> float:
    if not isinstance(value, (int, float)):
        raise ProtocolError("metric-value", "a metric is not a number")
    if not abs(value) <= LARGEST:  # false for NaN; integers may not fit a float
        raise ProtocolError("metric-value", "a metric is not finite, or too large")
    return float(value)


def _finished(program: Program) -> dict[str, int]:
    """Return the place of each metric of a round among what ``update`` tells."""
    places = {}
    for place, leaf in enumerate(program.metrics):
        *_, group, name = ("", *leaf.path.split("/"))
        if group == "current_round_metrics" and leaf.kind == ("float32", ()):
            places[name] = place
    return places


def why_torch(plan: Plan, task: Task, job: Job) -> str:
    """Return why nodes that are asked evaluate with torch; empty: with the plan.

    Differential privacy pays for an accuracy of each node, not for sums.
    """
    if reasons := Evaluation.obstacles(plan):
        return "; ".join(reasons)
    if set(task.metrics) != METRICS:
        return f"the task's metrics are {', '.join(task.metrics)}"
    if job.privacy.on:
        return "privacy.mechanism: nodes tell an accuracy at most, with noise"
    return ""


def with_what(plan: Plan, task: Task, job: Job) -> str:
    """Return what nodes evaluate with: ``plan``, ``torch: why`` or ``nothing: why``.

    With ``round.evaluate = auto`` that is for a server without test data.
    """
    if job.secure.on:
        return f"nothing: {NOT_ASKED}"
    if job.round.evaluate in ("none", "server"):
        return f"nothing: round.evaluate = {job.round.evaluate}"
    reason = why_torch(plan, task, job)
    return f"torch: {reason}" if reason else "plan"
