"""A silo agrees to a plan, which stays with it for the run.

A plan is code that the server's operator wrote. A silo runs it only if

- its own operator pinned the plan's hash in the node's config: ``tff-plans``, a comma
  list (simulated nodes, which share the server's machine, accept any plan),
- the plan has that hash and nothing but allowed operators (:mod:`.plan`),
- TensorFlow is installed; or the operator chose ``tff-engine = "torch"``, and the job
  lets silos train with torch (``tff.mixed``).

All this is checked when the node is greeted, before the first round. The plan then
stays in the node's state for the run; later messages name its hash only.

Message format
--------------
Hello, ``"config"``: ``tff-plan`` (sha256) and ``tff-plan-bytes`` (the file).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from flwr.app import ConfigRecord, Context, RecordDict

from truststram.errors import ConfigError, ProtocolError
from truststram.job import Job

from .analytics import Analytics, check_alone, checked
from .execution import require_tensorflow
from .part import Part
from .plan import Plan, read_plan
from .runtime import SiloRuntime
from .sealed import check_sealed
from .strategy import PLAN
from .torch_silo import check_torch

__all__ = ["accept", "agreed", "offer", "uses_torch"]

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
        check_alone(job)
        require_tensorflow("this node")
    elif uses_torch(context.node_config):
        check_torch(plan, job)
    else:
        if plan.sealed:
            check_sealed(plan.sealed, job)
        require_tensorflow("this node")
    context.state[STATE] = ConfigRecord({PLAN: sha256, BYTES: data})


def agreed(
    kind: type[Kind], content: RecordDict, context: Context, simulated: bool
) -> tuple[Kind, SiloRuntime]:
    """Return what a message asks for, of the plan that this node agreed to.

    Raises
    ------
    ConfigError
        If the node did not agree to the plan that the message names, or its operator
        has taken that back, or the plan has no such program or one that cannot be run.
    """
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
