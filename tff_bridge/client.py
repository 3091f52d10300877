"""A silo: it runs the ``work`` of the plan that it agreed to on private data.

What it takes to agree is in :mod:`.agreement`.

Message format
--------------
Train message: see :mod:`.strategy`. Reply: an update as in :mod:`strategies.update`;
besides ``num-examples``, its metrics are the plan's sums, divided by the weight. Of a
plan with secure sums it is integers (:mod:`.sealed`), for a secure sum's mod only.
Evaluate message: see :mod:`.evaluation_layer`; its reply: :mod:`.evaluation`.
The query of a computation, and its reply: see :mod:`.analytics_server`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from truststram.errors import ProtocolError
from truststram.job import Job
from truststram.records import view
from truststram.techniques import with_delta

from .agreement import accept, agreed, uses_torch
from .analytics import Analytics, check_alone
from .analytics_server import PREPARED as LEAVES
from .analytics_server import SUMS, numbered, unnumbered
from .evaluation import Evaluation
from .leaves import Leaves, nbytes, size
from .part import Part
from .runtime import SiloRuntime
from .sealed import check_sealed
from .silo_data import Passes, arrays_of
from .strategy import PLAN, PREPARED
from .training import Training

__all__ = ["accept", "compute", "evaluate", "evaluates", "train", "uses_torch"]


def train(
    content: RecordDict,
    data: Any,
    job: Job,
    seed: int,
    context: Context,
    simulated: bool,
) -> RecordDict:
    """Run ``work`` and return the content of the reply.

    Parameters
    ----------
    content : RecordDict
        Of the train message.
    data : object
        See :func:`.silo_data.arrays_of`.
    job : Job
    seed : int
        Of the order of the examples; see :class:`.silo_data.Passes`.
    context : Context
        Whose state has the plan.
    simulated : bool

    Raises
    ------
    ConfigError, DataError, ProtocolError, RunError
        One sentence for whoever reads the server's events.
    """
    training, runtime = agreed(Training, content, context, simulated)
    if training.sealed:
        check_sealed(training.sealed, job)
    x, y = arrays_of(data, training.element)
    leaves = runtime.work(
        *(x, y, Passes(seed, len(x), training.epochs), training.batch_size),
        _prepared(content, training),
        seconds=job.round.deadline,  # an answer after it would be thrown away
    )
    if training.sealed:
        return training.sealed.reply(leaves)
    reply = training.layout.reply(leaves)
    made = with_delta(RecordDict(), reply.delta)
    metrics = {} if job.tff.mixed else reply.metrics
    made["metrics"] = MetricRecord({**metrics, "num-examples": reply.examples})
    return made


def evaluates(content: RecordDict, node_config: Mapping[str, Any]) -> bool:
    """Return whether a node answers an evaluate message with a plan, not with torch."""
    config = content.get("config")
    asked = isinstance(config, ConfigRecord) and PLAN in config
    return asked and not uses_torch(node_config)


def evaluate(
    content: RecordDict, data: Any, job: Job, context: Context, simulated: bool
) -> RecordDict:
    """Run ``work`` of the evaluation and return the content of the reply: metrics.

    Parameters
    ----------
    content : RecordDict
        Of the evaluate message.
    data : object
        Held out. See :func:`.silo_data.arrays_of`; each row is seen once.
    job, context, simulated
        As for :func:`train`.

    Raises
    ------
    ConfigError, DataError, ProtocolError, RunError
        One sentence for whoever reads the server's events.
    """
    evaluation, runtime = agreed(Evaluation, content, context, simulated)
    leaves = _once(evaluation, runtime, data, _prepared(content, evaluation), job)
    return RecordDict({"metrics": MetricRecord({**evaluation.metrics(leaves)})})


def compute(
    content: RecordDict, data: Any, job: Job, context: Context, simulated: bool
) -> RecordDict:
    """Run ``work`` of a computation and return the content of the reply: the sums.

    Parameters
    ----------
    content : RecordDict
        Of the query.
    data : object
        See :func:`.silo_data.arrays_of`; each row is seen once, in its order.
    job, context, simulated
        As for :func:`train`.

    Guarantees
    ----------
    A job that says it has differential privacy, or any other layer, is not answered:
    the sums would go out without it.

    Raises
    ------
    ConfigError, DataError, ProtocolError, RunError
        One sentence for whoever reads the server's events.
    """
    analytics, runtime = agreed(Analytics, content, context, simulated)
    check_alone(job)
    prepared = unnumbered(content.get(LEAVES), analytics.prepared)
    return RecordDict({SUMS: numbered(_once(analytics, runtime, data, prepared, job))})


def _once(
    part: Part, runtime: SiloRuntime, data: Any, prepared: Leaves, job: Job
) -> Leaves:
    """Return the leaves of ``work`` on every row once, in the order of the data."""
    x, y = arrays_of(data, part.element)
    return runtime.work(
        *(x, y, None, part.batch_size, prepared), seconds=job.round.deadline
    )


def _prepared(content: RecordDict, part: Part) -> Leaves:
    """Return the leaves of ``prepare`` from a message with a model, not trusted."""
    arrays, config = content["arrays"], content["config"]
    if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise ProtocolError("array-records", "the message has no arrays or no config")
    found: Leaves = []
    for name, shape in part.plan.parameters.items():
        if name not in arrays:
            raise ProtocolError("array-keys", "an array of the model is missing")
        found.append(view(arrays[name], "float32", shape))
    rest, given = part.prepared[len(found) :], config.get(PREPARED, b"")
    expected, start = sum(map(nbytes, rest)), 0
    if not isinstance(given, bytes) or len(given) != expected:
        raise ProtocolError("tff-prepared", f"expected {expected} bytes")
    for leaf in rest:
        values = np.frombuffer(given, leaf.dtype, size(leaf), start)
        found.append(values.reshape([n or 0 for n in leaf.shape]))
        start += nbytes(leaf)
    return found
