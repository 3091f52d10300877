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
besides ``num-examples``, its metrics are the plan's sums, divided by the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from numpy.typing import NDArray

from truststram.errors import ConfigError, DataError, ProtocolError
from truststram.job import Job
from truststram.records import view
from truststram.techniques import with_delta

from .leaves import Leaves, nbytes, size
from .plan import Plan, read_plan
from .runtime import SiloRuntime, require_tensorflow
from .strategy import PLAN, PREPARED
from .torch_silo import check_torch
from .training import Training

__all__ = ["accept", "arrays_of", "offer", "order_of", "train", "uses_torch"]

BYTES = "tff-plan-bytes"
STATE = "truststram-tff"


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
        If this node's operator did not pin the plan, TensorFlow is missing, the plan is
        not a round of ours, or torch cannot stand in.
    ProtocolError
        As :func:`tff_bridge.plan.read_plan`.
    """
    sha256, data = str(offered.get(PLAN, "")), offered.get(BYTES)
    _check_pinned(sha256, context.node_config, simulated)
    if not isinstance(data, bytes):
        raise ProtocolError("plan-file", "the server offers no plan")
    training = _training(data, sha256)
    if uses_torch(context.node_config):
        check_torch(training, job)
    else:
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
        See :func:`arrays_of`.
    job : Job
    seed : int
        Of the order of the examples; see :func:`order_of`.
    context : Context
        Whose state has the plan.
    simulated : bool

    Raises
    ------
    ConfigError, DataError, ProtocolError, RunError
        One sentence for whoever reads the server's events.
    """
    config = content["config"]
    sha256 = str(config.get(PLAN, ""))
    _check_pinned(sha256, context.node_config, simulated)
    kept = context.state.get(STATE)
    if not isinstance(kept, ConfigRecord) or kept[PLAN] != sha256:
        raise ConfigError("this node does not have the plan: it was restarted")
    plan_bytes: Any = kept[BYTES]
    training, runtime = _training(plan_bytes, sha256), _runtime(plan_bytes, sha256)
    x, y = arrays_of(data, training)
    leaves = runtime.work(
        *(x, y, order_of(seed, len(x), training.epochs), training.batch_size),
        _prepared(content, training),
        seconds=job.round.deadline,  # an answer after it would be thrown away
    )
    reply = training.layout.reply(leaves)
    made = with_delta(RecordDict(), reply.delta)
    metrics = {} if job.tff.mixed else reply.metrics
    made["metrics"] = MetricRecord({**metrics, "num-examples": reply.examples})
    return made


def order_of(seed: int, examples: int, epochs: int) -> NDArray[np.int64]:
    """Return the order of the examples in every pass, shape (epochs, examples).

    The same as :class:`truststram.tasks.torch_task.TorchTask` draws from this seed, so
    that torch and TensorFlow silos see the same batches.
    """
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(examples) for _ in range(epochs)])


def arrays_of(
    data: Any, training: Training
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Return the examples and labels as the plan takes them.

    Parameters
    ----------
    data : object
        With tensors or arrays ``x`` and ``y`` (such as
        :class:`truststram.tasks.torch_task.Examples`), or a sequence of (x, y) pairs.
    training : Training

    Raises
    ------
    DataError
        If the data have another form, or examples of another shape than the plan's.
    """
    if hasattr(data, "x") and hasattr(data, "y"):
        x, y = np.asarray(data.x), np.asarray(data.y)
    else:
        try:
            pairs = [data[i] for i in range(len(data))]
            x, y = (np.stack([np.asarray(pair[k]) for pair in pairs]) for k in (0, 1))
        except Exception as error:
            raise DataError(
                "A plan needs data with arrays x and y, or a sequence of (x, y) pairs; "
                f"these are {type(data).__name__}."
            ) from error
    found = []
    for name, values, leaf in zip("xy", (x, y), training.element, strict=True):
        if values.shape[1:] != leaf.shape[1:]:
            raise DataError(
                f"The plan takes {name} of shape {leaf.shape[1:]} for an example, this "
                f"node's data have {values.shape[1:]}."
            )
        found.append(values.astype(leaf.dtype, copy=False))
    return found[0], found[1]


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
@lru_cache(maxsize=4)
def _training(data: bytes, sha256: str) -> Training:
    """Return the training of a plan, checked once in this process."""
    return Training.of(read_plan(data, sha256))


@lru_cache(maxsize=2)
def _runtime(data: bytes, sha256: str) -> SiloRuntime:
    """Return the runtime of a plan, made once in this process."""
    return SiloRuntime(_training(data, sha256).program)


def _prepared(content: RecordDict, training: Training) -> Leaves:
    """Return the leaves of ``prepare`` from a train message, which is not trusted."""
    arrays, config = content["arrays"], content["config"]
    if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise ProtocolError("array-records", "a train message has arrays and config")
    found: Leaves = []
    for name, shape in training.plan.parameters.items():
        if name not in arrays:
            raise ProtocolError("array-keys", "an array of the model is missing")
        found.append(view(arrays[name], "float32", shape))
    rest, given = training.prepared[len(found) :], config.get(PREPARED, b"")
    expected, start = sum(map(nbytes, rest)), 0
    if not isinstance(given, bytes) or len(given) != expected:
        raise ProtocolError("tff-prepared", f"expected {expected} bytes")
    for leaf in rest:
        values = np.frombuffer(given, leaf.dtype, size(leaf), start)
        found.append(values.reshape([n or 0 for n in leaf.shape]))
        start += nbytes(leaf)
    return found
