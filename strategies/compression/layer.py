"""Server half of compression: say what to send, and turn frames back into updates.

``Compression(FedAvg(), codec="topk-q8")`` in any Flower app whose clients have
:func:`.mod.compression_mod`. Message format: :mod:`.messages` and :mod:`.wire`; the
codecs: :mod:`.codecs`; the way down: :mod:`.downlink`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram.errors import ProtocolError
from truststram.records import content_bytes

from ..base import StrategyLayer, walk
from ..update import Model
from .adaptive import Adaptive
from .asking import Asking, addressed
from .chain import moved
from .decode import decoded, expanded
from .downlink import DOWNLINK
from .messages import Answer, Ask
from .plan import planned
from .shared import LINEAR

__all__ = ["Compression"]


class Compression(StrategyLayer):
    """Ask nodes for encoded updates, decode them, and send the model in small steps.

    Must be outside every layer that reads updates.

    Parameters
    ----------
    inner : Strategy
        Any Flower strategy; it sees updates as if nothing had been encoded.
    codec : str
        Of updates: one of :data:`.codecs.CODECS`, ``"adaptive"`` or ``"none"``.
    ratio : float
        Part of the coordinates that topk and randk send, in (0, 1].
    error_feedback : bool
        Whether nodes add to an update what a biased codec left out of earlier ones.
    downlink : str
        Codec of the models' differences: one of :data:`.downlink.DOWNLINK` or
        ``"none"``.
    error_tolerance, target_seconds : float
        Of ``"adaptive"``, see :class:`.adaptive.Adaptive`.
    reduced : bool
        Under a secure sum: nodes hand the sum's own mod the values at the public
        selection, and one reply comes from outside, the mean of these values, shape
        (:attr:`reduced_size`,). The codec must be linear.
    seed : int
        Of all randomness here; public.

    Guarantees
    ----------
    No content of a reply stops the run: what cannot be decoded is dropped with a reason
    code, which layers inside hear of (:meth:`~strategies.base.StrategyLayer.heard`). A
    frame is of a codec that its node was asked for, of the model's length, finite, and
    decoded in time and memory of the order of the model. Replies without a frame, of
    clients that know nothing of this layer, pass as they are: a layer inside checks
    them. Codecs change norms: a clip that a guarantee rests on must be inside.

    With a downlink codec every node trains from the same M_t, which the layers inside
    see as the round's model, and the result is ``x_t`` plus what they made of the
    updates. (An average of models inside averages ``M_t`` plus updates.)

    Events
    ------
    ``compression-plan`` (once, :func:`.plan.planned`), ``compressed`` (round, phase,
    saved_up, saved_down, nodes), ``codec-chosen`` (round, node, codec, ratio, bytes,
    error, speed), ``residual-lost`` (round, node, damaged), ``downlink-off`` (round,
    node: whole models from now on, because steps lead it elsewhere), ``reply-dropped``.
    ``saved_up`` is 0 under a secure sum, whose bytes for a value are its own business:
    ``compression-plan`` has the number of values there.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        codec: str = "topk-q8",
        ratio: float = 0.1,
        error_feedback: bool = True,
        downlink: str = "none",
        error_tolerance: float = 0.2,
        target_seconds: float = 0.0,
        reduced: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(inner)
        if downlink not in ("none", *DOWNLINK):
            raise ValueError(f"Expected downlink={downlink!r} of {DOWNLINK} or 'none'.")
        if reduced and codec not in LINEAR:
            raise ValueError(f"Expected codec={codec!r} of {LINEAR} if reduced.")
        ratio = float(ratio)  # nodes take no integer for it
        self.codec, self.ratio, self.downlink = codec, ratio, downlink
        self.reduced = reduced
        self.adaptive = None
        if codec == "adaptive":
            self.adaptive = Adaptive(error_tolerance, target_seconds)
        self._asking = Asking(
            codec, ratio, error_feedback, downlink, self.adaptive, reduced, seed
        )
        self._exact: Model | None = None  # x_t, where nodes train from M_t
        self._asked: dict[str, dict[int, Ask]] = {"train": {}, "evaluate": {}}
        self._remembering: set[str] = set()  # nodes that should have a residual
        self._saved_down = 0
        self._told = False

    @property
    def reduced_size(self) -> int:
        """Number of values of this round's reduced updates."""
        if self._asking.selection is None:
            raise RuntimeError("configure_train must be called first")
        return self._asking.selection.k

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let ``inner`` choose the nodes; say how to encode, and send the model so."""
        arrays = self._followable(arrays)
        messages = super().configure_train(server_round, arrays, config, grid)
        self._announce()
        ask = self._asking.training(server_round, self._exact or self.model)
        return self._addressed("train", ask, messages)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model through the same chain: nodes evaluate M_t."""
        if self._asking.chain is None:
            return super().configure_evaluate(server_round, arrays, config, grid)
        arrays = self._followable(arrays)
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        ask = self._asking.evaluation(server_round)
        return self._addressed("evaluate", ask, messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the replies and hand on those that can be."""
        kept, sizes, saved = [], {}, 0
        for reply in replies:
            if reply.has_content() and not self.reduced:
                before = content_bytes(reply.content)
                if not self._read("train", server_round, reply):
                    continue
                name = self.name_of(reply.metadata.src_node_id)
                sizes[name] = before
                saved += content_bytes(reply.content) - before
            elif reply.has_content():
                reply.content = expanded(reply.content, self._asking.selection)
            kept.append(reply)
        self._tell_bytes(server_round, "train", saved, sizes)
        arrays, metrics = self.hand_on(server_round, kept)
        if arrays is not None and self._exact is not None:
            arrays = moved(arrays, self.model, self._exact)
        return arrays, metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Hand on the replies of nodes that had the model."""
        if self._asking.chain is not None:
            replies = [
                reply
                for reply in replies
                if not reply.has_content()
                or self._read("evaluate", server_round, reply)
            ]
            self._tell_bytes(server_round, "evaluate", 0, {})
        return self.inner.aggregate_evaluate(server_round, replies)

    @property
    def _secret(self) -> bool:
        """Whether it is a secret who took part in a round."""
        return any(getattr(x, "secret_cohort", False) for x in walk(self.inner))

    def _followable(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return M_t for the server's model x_t."""
        if self._asking.chain is None:
            return arrays
        self._exact = Model(ArrayRecord(dict(arrays)))
        return self._asking.chain.advance(self._exact).arrays

    def _addressed(
        self, phase: str, ask: Ask, messages: Iterable[Message]
    ) -> list[Message]:
        """Put into every message what its node is asked."""

        def chosen(node: int) -> tuple[Ask, list[bytes] | None]:
            return self._for_node(phase, self.name_of(node), ask)

        sent = list(messages)
        self._asked[phase], self._saved_down = addressed(sent, chosen)
        return sent

    def _for_node(
        self, phase: str, name: str, ask: Ask
    ) -> tuple[Ask, list[bytes] | None]:
        """Return what one node is asked, and the steps it gets instead of the model."""
        if phase == "train":
            ask, told = self._asking.encoding(name, self.model.spec.size, ask)
            if told:
                self.emit("codec-chosen", round=ask.round, node=name, **told)
        return self._asking.leading(name, ask)

    def _read(self, phase: str, server_round: int, reply: Message) -> bool:
        """Decode a reply in place; return whether it goes on."""
        node = reply.metadata.src_node_id
        name, ask = self.name_of(node), self._asked[phase].pop(node, None)
        if ask is None:
            error = ProtocolError("unknown-node", "not asked, or has replied already")
            self._drop(server_round, phase, name, error)
            return False
        answer = Answer.of(reply.content)
        try:
            if answer is not None and answer.missing:
                raise ProtocolError(
                    "model-missing", "the node gets all of it next time"
                )
            spec, selection = self.model.spec, self._asking.selection
            content = decoded(reply.content, spec, ask.codec, selection)
        except ProtocolError as error:
            if self._asking.chain and answer and answer.missing:
                differs = answer.differs and ask.stepwise
                if self._asking.chain.missed(name, differs) and not self._secret:
                    self.emit("downlink-off", round=server_round, node=name)
            else:
                self._tell_inside(phase, name, error)
            self._drop(server_round, phase, name, error)
            return False
        if answer is not None:
            self._note(reply, ask, answer)
        reply.content = content
        return True

    def _note(self, reply: Message, ask: Ask, answer: Answer) -> None:
        """Remember what a node has and how it did."""
        node = reply.metadata.src_node_id
        name = self.name_of(node)
        size, seconds = content_bytes(reply.content), self.seconds_of(node)
        self._asking.learn(name, ask, answer, size, seconds)
        if not ask.feedback:
            return
        if answer.fresh and name in self._remembering and not self._secret:
            damaged = answer.damaged
            self.emit("residual-lost", round=ask.round, node=name, damaged=damaged)
        self._remembering.add(name)

    def _drop(
        self, server_round: int, phase: str, name: str, error: ProtocolError
    ) -> None:
        self.emit(
            "reply-dropped",
            round=server_round,
            phase=phase,
            node=name,
            code=error.code,
            detail=error.detail,
        )

    def _tell_inside(self, phase: str, name: str, error: ProtocolError) -> None:
        """Let layers inside count a reply that they will not see as evidence."""
        for layer in walk(self.inner):
            if isinstance(layer, StrategyLayer):
                layer.heard("reply-dropped", phase=phase, node=name, code=error.code)

    def _announce(self) -> None:
        if not self._told:
            spec, codec = self.model.spec, self.codec
            plan = planned(spec, codec, self.ratio, self.downlink, self.reduced)
            self.emit("compression-plan", **plan)
            self._told = True

    def _tell_bytes(
        self, server_round: int, phase: str, saved: int, nodes: Mapping[str, int]
    ) -> None:
        """Say what was saved; by node where it is no secret who took part."""
        self.emit(
            "compressed",
            round=server_round,
            phase=phase,
            saved_up=saved,
            saved_down=self._saved_down,
            nodes={} if self._secret else dict(nodes),
        )

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        kept = f" {self.ratio:g}" if "k" in self.codec else ""
        return f"Compression (up {self.codec}{kept}, down {self.downlink})"

    def state(self) -> dict[str, Any]:
        """Return what is asked and known; which model a node has is asked anew."""
        return {
            "asking": self._asking.state(),
            "told": self._told,
            "remembering": sorted(self._remembering),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._asking.load_state(state["asking"])
        self._told = bool(state["told"])
        self._remembering = set(state["remembering"])
