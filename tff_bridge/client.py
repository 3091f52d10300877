"""A silo: it agrees to a plan, then runs its ``work`` on private data.

A plan is code that the server's operator wrote. A silo runs it only if

- its own operator pinned the plan's hash in the node's config: ``tff-plans``, a comma
  list (simulated nodes, which share the server's machine, accept any plan),
- the plan has that hash and nothing but allowed operators (:mod:`.plan`),
- TensorFlow is installed; or the operator chose ``tff-engine = "torch"``, and the job
  lets silos train with torch (``tff.mixed``).

All this is checked when the node is greeted, before the first round. The plan then
stays in the node's state for the run; training messages name its hash only.

Message format
--------------
Hello, ``"config"``: ``tff-plan`` (sha256) and ``tff-plan-bytes`` (the file).
Train message: see :mod:`.strategy`. Reply: an update as in :mod:`strategies.update`;
besides ``num-examples``, its metrics are the plan's sums, divided by the weight. Of a
plan with secure sums it is integers (:mod:`.sealed`), for a secure sum's mod only.
Evaluate message: see :mod:`.evaluation_layer`; its reply: :mod:`.evaluation`.
The query of a computation, and its reply: see :mod:`.analytics_server`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from truststram.errors import ConfigError, ProtocolError
from truststram.job import Job
from truststram.records import view
from truststram.techniques import with_delta

from .analytics import Analytics, checked, conflicts
from .analytics_server import PREPARED as LEAVES
from .analytics_server import SUMS, numbered, unnumbered
from .evaluation import Evaluation
from .execution import require_tensorflow
from .leaves import Leaves, nbytes, size
from .part import Part
from .plan import Plan, read_plan
from .runtime import SiloRuntime
from .sealed import check_sealed
from .silo_data import Passes, arrays_of
from .strategy import PLAN, PREPARED
from .torch_silo import check_torch
from .training import Training

__all__ = [
    *("accept", "compute", "evaluate", "evaluates", "offer", "train", "uses_torch"),
]

BYTES = "tff-plan-bytes"
STATE = "truststram-tff"
Kind = TypeVar("Kind", bound=Part)


def offer(plan: Plan) -> ConfigRecord:
    """Return what nodes are asked to agree to."""
    return ConfigRecord({PLAN: plan.sha256, BYTES: plan.to_bytes()})


def uses_torch(node_config: Mapping[str, Any]) -> bool:
    """Return whether this node's operator wants torch instead of TensorFlow."""
    engine = str(node_config.get("tff-engine", "tensorflow"))
    if engine not in ("tensorflow", "torch"):
        raise ConfigError(
            f"tff-engine = {engine[:40]!r} in the node's config: expected tensorflow "
            "or torch."
        )
    return engine == "torch"


def accept(offered: ConfigRecord, job: Job, context: Context, simulated: bool) -> None:
    """Check the offered plan and keep it for this run.

    Raises
    ------
    ConfigError
        If this node's operator did not pin the plan, TensorFlow is missing, the plan
        cannot be run over Flower or not in this job, or torch cannot stand in.
    ProtocolError
        As :func:`tff_bridge.plan.read_plan`.
    """
    sha256, data = str(offered.get(PLAN, "")), offered.get(BYTES)
    _check_pinned(sha256, context.node_config, simulated)
    if not isinstance(data, bytes):
        raise ProtocolError("plan-file", "the server offers no plan")
    plan = checked(_plan(data, sha256))
    if isinstance(plan, Analytics):
        _check_alone(job)
        require_tensorflow("this node")
    elif uses_torch(context.node_config):
        check_torch(plan, job)
    else:
        if plan.sealed:
            check_sealed(plan.sealed, job)
        require_tensorflow("this node")
    context.state[STATE] = ConfigRecord({PLAN: sha256, BYTES: data})


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
    training, runtime = _agreed(Training, content, context, simulated)
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
    evaluation, runtime = _agreed(Evaluation, content, context, simulated)
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
    analytics, runtime = _agreed(Analytics, content, context, simulated)
    _check_alone(job)
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


def _check_alone(job: Job) -> None:
    if lines := conflicts(job):
        raise ConfigError("\n".join(f"tff.plan with {line}." for line in lines))


def _agreed(
    kind: type[Kind], content: RecordDict, context: Context, simulated: bool
) -> tuple[Kind, SiloRuntime]:
    """Return what a message asks for, of the plan that this node agreed to."""
    config = content["config"]
    sha256 = str(config.get(PLAN, ""))
    _check_pinned(sha256, context.node_config, simulated)
    kept = context.state.get(STATE)
    if not isinstance(kept, ConfigRecord) or kept[PLAN] != sha256:
        raise ConfigError("this node does not have the plan: it was restarted")
    data: bytes = kept[BYTES]  # type: ignore[assignment]  # accept() put bytes there
    return _part(kind, data, sha256), _runtime(kind, data, sha256)  # type: ignore[return-value]  # of this kind


def _check_pinned(sha256: str, node_config: Mapping[str, Any], simulated: bool) -> None:
    """Refuse a plan that this node's operator has not named."""
    pinned = node_config.get("tff-plans")
    if pinned is None and simulated:
        return
    names = {name.strip().lower() for name in str(pinned or "").split(",")} - {""}
    if sha256 not in names:
        raise ConfigError(
            f"plan {sha256[:64]} is not pinned here. A plan is code: look at the file "
            "(truststram tff inspect), then allow it in this node's config with "
            "tff-plans."
        )


# A node takes part in few federations; a simulation's worker meets one plan.
@lru_cache(maxsize=2)
def _plan(data: bytes, sha256: str) -> Plan:
    """Return a plan, read and checked once in this process."""
    return read_plan(data, sha256)


@lru_cache(maxsize=4)
def _part(kind: type[Part], data: bytes, sha256: str) -> Part:
    """Return a plan's program of one kind, checked once in this process."""
    plan = _plan(data, sha256)
    if kind.name not in plan.programs:
        found = ", ".join(plan.programs)
        raise ConfigError(f"tff.plan: the plan has no {kind.name}, only {found}")
    return kind.of(plan)


@lru_cache(maxsize=4)
def _runtime(kind: type[Part], data: bytes, sha256: str) -> SiloRuntime:
    """Return what executes a program, made once in this process."""
    return SiloRuntime(_part(kind, data, sha256).program)


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
