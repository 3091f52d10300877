"""What the server asks of each node in a phase, and what it sends to that end.

The decisions of the server's half: codec by node, public selection, steps of the chain.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict

from truststram.records import content_bytes
from truststram.rng import derive_seed

from ..update import Model
from . import wire
from .adaptive import Adaptive, Rung
from .chain import Chain
from .codecs import make_codec
from .messages import RECORD, STEPS, Answer, Ask, wrapped
from .selection import Selection
from .shared import Selector

__all__ = ["Asking", "addressed", "with_ask"]


class Asking:
    """Says what a node is asked; parameters as of :class:`.layer.Compression`.

    Attributes
    ----------
    adaptive : Adaptive or None
    chain : Chain or None
        Of the way down.
    selection : Selection or None
        Public coordinates of this round.
    """

    def __init__(
        self,
        codec: str,
        ratio: float,
        error_feedback: bool,
        downlink: str,
        adaptive: Adaptive | None,
        reduced: bool,
        seed: int,
    ) -> None:
        self._rung = Rung(codec, ratio)
        self._feedback, self._reduced, self._seed = error_feedback, reduced, seed
        self.adaptive = adaptive
        known = None if codec in ("none", "adaptive") else make_codec(codec, ratio)
        self._selector = None
        if known and known.public:
            self._selector = Selector(ratio, codec == "topk-shared", seed)
        self.chain = None
        if downlink != "none":
            self.chain = Chain(make_codec(downlink, ratio), seed)
        self.selection: Selection | None = None
        self._job = secrets.token_hex(16)

    def training(self, server_round: int, x: Model) -> Ask:
        """Return what all nodes are asked in a round that starts from model x."""
        seed = derive_seed(self._seed, "codec")
        ask = Ask(self._job, server_round, seed=seed, reduced=self._reduced)
        if self._selector is None:
            return ask
        self.selection = self._selector.select(server_round, x.flat)
        name = wire.spec_hash(x.spec)
        frame = wire.pack_selection(self.selection, spec_hash=name)
        return replace(ask, selection=frame)

    def evaluation(self, server_round: int) -> Ask:
        """Return what all nodes are asked with an evaluate message."""
        return Ask(self._job, server_round)

    def encoding(
        self, name: str, d: int, ask: Ask
    ) -> tuple[Ask, dict[str, Any] | None]:
        """Return what a node is asked to encode with, and what to tell of it if new."""
        rung, told = self._rung, None
        if self.adaptive:
            rung, told = self.adaptive.choose(name, d)
        if rung.codec == "none":
            return ask, None
        # Adaptive: whatever is left of a biased codec goes with the next one.
        biased = not make_codec(rung.codec, rung.ratio).unbiased
        feedback = self._feedback and (biased or self.adaptive is not None)
        ask = replace(ask, codec=rung.codec, ratio=rung.ratio, feedback=feedback)
        return ask, told

    def leading(self, name: str, ask: Ask) -> tuple[Ask, list[bytes] | None]:
        """Return the steps that lead a node to M_t; None: it gets all of M_t."""
        if self.chain is None:
            return ask, None
        chain, missing = self.chain, self.chain.since(name)
        ask = replace(ask, model=chain.versions[-1], stepwise=missing is not None)
        if missing is None:
            return ask, None
        starts = tuple(chain.versions[i] for i in missing)
        return replace(ask, versions=starts), [chain.steps[i] for i in missing]

    def learn(
        self, name: str, ask: Ask, answer: Answer, size: int, seconds: float | None
    ) -> None:
        """Learn from a node's answer which model it has, and how its codec did.

        Parameters
        ----------
        size : int
            Of its reply, in bytes.
        seconds : float or None
            From the message to the reply, if that was measured.
        """
        if self.chain and answer.held == ask.model:
            # Without a step nothing was computed.
            self.chain.acknowledged(name, ask.model, stepwise=bool(ask.versions))
        if self.adaptive and ask.codec != "none":
            training = 0 if math.isnan(answer.seconds) else answer.seconds
            rest = None if seconds is None else seconds - training
            self.adaptive.learn(name, answer.error, size, rest)

    def state(self) -> dict[str, Any]:
        """Return the job's id, the chain, the selection's past, what adaptive knows."""
        return {
            "job": self._job,
            "chain": self.chain and self.chain.state(),
            "selector": self._selector and self._selector.state(),
            "adaptive": self.adaptive and self.adaptive.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._job = str(state["job"])
        if self.chain:
            self.chain.load_state(state["chain"])
        if self._selector:
            self._selector.load_state(state["selector"])
        if self.adaptive:
            self.adaptive.load_state(state["adaptive"])


def addressed(
    messages: Iterable[Message],
    chosen: Callable[[int], tuple[Ask, list[bytes] | None]],
) -> tuple[dict[int, Ask], int]:
    """Put into messages what their nodes are asked; equal contents are shared.

    Parameters
    ----------
    messages : iterable of Message
        Get other contents.
    chosen : callable
        Node -> what it is asked, and the steps it gets instead of the model.

    Returns
    -------
    asked : dict
        By node.
    saved : int
        Bytes that the contents are shorter.
    """
    asked: dict[int, Ask] = {}
    made: dict[tuple[int, Ask], tuple[RecordDict, RecordDict, int]] = {}
    total = 0
    for message in messages:
        node, content = message.metadata.dst_node_id, message.content
        asked[node], steps = chosen(node)
        key = (id(content), asked[node])
        if key not in made:
            new = with_ask(content, asked[node], steps)
            saved = content_bytes(content) - content_bytes(new)
            made[key] = content, new, saved  # the first lives as long as its id
        _, message.content, saved = made[key]
        total += saved
    return asked, total


def with_ask(content: RecordDict, ask: Ask, steps: list[bytes] | None) -> RecordDict:
    """Return a message's content with what is asked, and steps instead of the model."""
    arrays = [k for k, v in content.items() if isinstance(v, ArrayRecord)]
    ask = replace(ask, key=arrays[0] if arrays else ask.key)
    found = RecordDict({RECORD: ask.record()})
    for name, record in content.items():
        if steps is None or not isinstance(record, ArrayRecord):
            found[name] = record
    if steps is not None:
        frames = {str(i): wrapped(step) for i, step in enumerate(steps)}
        found[STEPS] = ArrayRecord(frames)
    return found
