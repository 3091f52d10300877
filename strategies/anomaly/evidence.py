"""Where the evidence about nodes comes from: what layers inside say, and the replies.

A layer inside that rejects an update or drops a reply says so in its events
(``update-rejected``, ``reply-dropped``); :func:`listening` hears them on their way to
the log. A later layer joins by emitting these kinds. :func:`observe` reads the norm and
the loss of raw replies: it stands outside the guard, so nothing about them is certain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import Strategy

from truststram.errors import ProtocolError
from truststram.records import Float32

from ..base import Emit, StrategyLayer, sole_metrics, walk
from ..update import Model, read_delta
from .core import Doubles, changes, norm_limit, relative_losses
from .standing import Standings

__all__ = [
    "Found",
    "Observed",
    "judge_losses",
    "judge_norms",
    "listening",
    "observe",
]

# Causes that are a decision about an update. The others are numbers in which honest
# nodes differ too, and one of them is the node's own word.
VERDICTS = {"rule", "guard"}
SUSPICION = 0.5

Causes = dict[str, dict[str, Any]]
Hear = Callable[[str, dict[str, Any]], None]

# A crash and a slow network are not misbehaviour.
FAULTS = ("client-error", "stale-round")


class Found:
    """Evidence by node and cause: statistics and thresholds, JSON-safe.

    Causes are ``rule``, ``guard``, ``norm`` and ``loss``. The first evidence of a cause
    counts. Changes of losses and their limits are differences of natural logarithms.

    Parameters
    ----------
    nodes : mapping, optional
        Node -> cause -> evidence, to start from.
    """

    def __init__(self, nodes: Mapping[str, Causes] | None = None) -> None:
        self.nodes: dict[str, Causes] = {n: dict(c) for n, c in (nodes or {}).items()}

    def add(self, node: str, cause: str, evidence: dict[str, Any]) -> None:
        """Note evidence about a node."""
        self.nodes.setdefault(node, {}).setdefault(cause, evidence)

    def hearing(self, verdicts: bool) -> Hear:
        """Return a listener that notes what an event says about its node, if anything.

        Rejections by a rule are noted if they are ``verdicts`` on the node.
        """

        def hear(kind: str, data: dict[str, Any]) -> None:
            node, code = data.get("node"), data.get("code")
            if not isinstance(node, str):
                return
            if kind == "update-rejected" and verdicts:
                self.add(node, "rule", dict(data.get("evidence") or {}))
            elif kind == "reply-dropped" and code not in FAULTS:
                self.add(node, "guard", {"code": code, "phase": data.get("phase")})

        return hear

    def weight(self, node: str) -> float:
        """Return how bad the round was: 1 for a verdict, half for a suspicion."""
        causes = self.nodes.get(node, {})
        return 1.0 if VERDICTS & causes.keys() else SUSPICION if causes else 0.0

    def about(self, nodes: Collection[str]) -> Found:
        """Return the evidence about ``nodes`` only."""
        return Found({n: causes for n, causes in self.nodes.items() if n in nodes})

    def merged(self, other: Found) -> Found:
        """Return the evidence of both."""
        both = Found(self.nodes)
        for node, causes in other.nodes.items():
            for cause, evidence in causes.items():
                both.add(node, cause, evidence)
        return both


@contextmanager
def listening(inner: Strategy, hear: Hear) -> Iterator[None]:
    """Hear every event that the layers in ``inner`` emit while the block runs.

    The events reach whoever got them before, unchanged; afterwards, also after an
    exception, the layers are as they were.
    """
    layers = [x for x in walk(inner) if isinstance(x, StrategyLayer)]
    before = [layer.emit for layer in layers]
    for layer, emit in zip(layers, before, strict=True):
        layer.emit = _heard(emit, hear)
    try:
        yield
    finally:
        for layer, emit in zip(layers, before, strict=True):
            layer.emit = emit


def _heard(emit: Emit, hear: Hear) -> Emit:
    def both(kind: str, **data: Any) -> object:
        hear(kind, data)
        return emit(kind, **data)

    return both


@dataclass
class Observed:
    """One reply; NaN for the norm of an unreadable update and for a missing loss."""

    reply: Message
    norm: float
    loss: float


def observe(
    replies: Iterable[Message],
    asked: Collection[int],
    model: Model,
    loss_key: str,
    name_of: Callable[[int], str],
) -> dict[str, Observed]:
    """Return name -> first reply of each node that was asked, error replies excluded.

    No content of a reply makes it raise. Memory: one update at a time.
    """
    found: dict[str, Observed] = {}
    for reply in replies:
        node = reply.metadata.src_node_id
        if node not in asked or not reply.has_content() or name_of(node) in found:
            continue
        norm, loss = _norm(reply.content, model), _loss(reply.content, loss_key)
        found[name_of(node)] = Observed(reply, norm, loss)
    return found


def judge_norms(seen: dict[str, Observed], found: Found) -> None:
    """Add the nodes whose update is conspicuously long."""
    norms = {name: one.norm for name, one in seen.items() if math.isfinite(one.norm)}
    limit = norm_limit(_array(norms.values()))
    for name, norm in norms.items():
        if norm > limit:
            evidence = {"norm": _rounded(norm), "limit": _rounded(limit)}
            found.add(name, "norm", evidence)


def judge_losses(
    seen: dict[str, Observed], standings: Standings, found: Found
) -> dict[str, float]:
    """Add the nodes whose loss jumped; return the relative losses to remember."""
    losses = {name: one.loss for name, one in seen.items() if math.isfinite(one.loss)}
    relative = relative_losses(_array(losses.values()))
    if relative is None:
        return {}
    histories = [standings[name].losses for name in losses]
    changed, limits, shift = changes(relative, histories)
    for name, change, limit in zip(losses, changed, limits, strict=True):
        if change > limit:  # NaN is not
            numbers = {"loss": losses[name], "change": change, "limit": limit}
            found.add(name, "loss", {k: _rounded(v) for k, v in numbers.items()})
    return dict(zip(losses, map(float, relative - shift), strict=True))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _array(values: Iterable[float]) -> Doubles:
    return np.array(list(values), np.float64)


def _norm(content: RecordDict, model: Model) -> float:
    """Return the norm of an update; NaN if it cannot be read or is not finite."""
    try:
        return norm_of(read_delta(content, model))
    except ProtocolError:  # the guard says what is wrong with it
        return math.nan


def norm_of(delta: Float32) -> float:
    """Return the Euclidean norm; NaN or infinity if a value is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        square = float(np.dot(delta, delta))
        if math.isinf(square):  # in float32 the squares of large finite values overflow
            square = float(np.square(delta, dtype=np.float64).sum())
        return math.sqrt(square)


def _loss(content: RecordDict, key: str) -> float:
    """Return a reported loss; NaN for anything but a finite number >= 0."""
    value: object = sole_metrics(content).get(key)
    if type(value) not in (int, float):
        return math.nan
    try:
        loss = float(value)  # type: ignore[arg-type]  # a number
    except OverflowError:
        return math.nan
    return loss if 0 <= loss < math.inf else math.nan
