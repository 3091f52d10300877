"""The sums of one round of secure aggregation, stage by stage.

What :mod:`.secagg_server` computes meets what :mod:`.stages` sends: one exchange a
stage, for the sums of all groups at once. A sum that cannot go on is refused and told;
the others are not touched by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from truststram._flower import with_content
from truststram.errors import ProtocolError
from truststram.records import blank

from ..base import synthetic_reply
from ..update import DELTA, UPDATE
from .graph import MALICIOUS
from .integers import with_integers
from .secagg_server import Server
from .secagg_wire import KEYS, MASK, label_of, word_of
from .slots import Slots
from .stages import Stages
from .wire import SECURE

__all__ = ["Round"]

# More bytes than a client sends for each client of its cohort, in any stage.
PER_HOLDER = 256
# More places than :class:`.slots.Slots` adds to an update.
MAX_COUNTERS = 512
# Bytes of a masked value, at most.
WIDEST = 8


class _Sum:
    """One sum of a round: its server half and the nodes that were asked."""

    def __init__(self, server: Server, nodes: Sequence[int]) -> None:
        self.server, self.nodes = server, set(nodes)
        self.refused = False
        self.slots: Slots | None = None
        self.like: Message | None = None  # whose metadata the mean has

    def own(self, answers: Mapping[int, bytes]) -> dict[int, bytes]:
        """Return the answers of this sum's nodes."""
        return {node: body for node, body in answers.items() if node in self.nodes}


Step = Callable[[Server, dict[int, bytes]], dict[int, bytes]]


class Round:
    """The sums of one round.

    Parameters
    ----------
    stages : Stages
    cohorts : sequence of sequence of int
        The nodes of each sum.
    cheats : set of str
        Names of clients that are not let in; those that were found out are added.
    """

    def __init__(
        self, stages: Stages, cohorts: Sequence[Sequence[int]], cheats: set[str]
    ) -> None:
        self._stages, self._settings = stages, stages.settings
        self._telling = stages.telling
        run, roster = stages.federation.run, stages.federation.roster
        self._session = self._settings.session(run, stages.request)
        self._sums = [
            _Sum(Server(self._session, roster, cheats), nodes) for nodes in cohorts
        ]
        self._tags: dict[int, str] = {}  # node -> hash of its cohort, once it is known

    def begin(self, messages: Sequence[Message]) -> list[Message]:
        """Run the stages before training; return the messages of who takes part.

        A cohort that is too small or too large is refused before anybody is asked.
        """
        bodies = self._each(KEYS, self._invited)
        bodies = self._stage(KEYS, bodies, Server.keys)
        for one in self._sums:
            if not one.refused:
                self._tags |= dict.fromkeys(one.nodes, one.server.cohort.tag.hex())
        bodies = self._stage("shares", bodies, Server.shares)
        asked = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in bodies:
                record = self._stages.request.at(MASK, bodies[node]).record()
                content = RecordDict({**message.content, SECURE: record})
                asked.append(with_content(message, content))
        return asked

    def _invited(self, one: _Sum) -> dict[int, bytes]:
        self._session.check_size(len(one.nodes))
        return dict.fromkeys(one.nodes, b"")

    def finish(self, replies: Sequence[Message], most: int) -> list[Message]:
        """Run the stages after training; return the mean of each sum.

        Parameters
        ----------
        replies : sequence of Message
            To the messages of :meth:`begin`.
        most : int
            Largest number of values in an update.
        """
        bodies = self._each("train", lambda one: self._add(one, replies, most))
        if self._session.threat == MALICIOUS:
            bodies = self._stage("consent", bodies, Server.consents)
        answers = self._ask("unmask", bodies)
        means: list[Message] = []
        self._each(
            "unmask", lambda one: means.append(self._mean(one, one.own(answers)))
        )
        return means

    def _stage(
        self, stage: str, bodies: Mapping[int, bytes], step: Step
    ) -> dict[int, bytes]:
        answers = self._ask(stage, bodies)
        return self._each(stage, lambda one: step(one.server, one.own(answers)))

    def _ask(self, stage: str, bodies: Mapping[int, bytes]) -> dict[int, bytes]:
        most = PER_HOLDER * (len(bodies) + 1)
        return self._stages.ask(stage, bodies, self._tags, most) if bodies else {}

    def _each(
        self, stage: str, step: Callable[[_Sum], dict[int, bytes] | None]
    ) -> dict[int, bytes]:
        """Take every sum one step on; return what its nodes are told next."""
        bodies: dict[int, bytes] = {}
        for one in self._sums:
            if one.refused:
                continue
            try:
                bodies |= step(one) or {}
            except ProtocolError as error:
                one.refused = True
                self._telling.refuse(error)
            for node, reason in one.server.dropped:
                self._telling.drop(stage, node, reason)
            one.server.dropped.clear()
        return bodies

    def _add(
        self, one: _Sum, replies: Sequence[Message], most: int
    ) -> dict[int, bytes]:
        """Add the masked values of the replies that are in order and alike."""
        read = []
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in one.nodes:
                try:
                    read.append((node, reply, *self._read(reply, most)))
                except ProtocolError as error:
                    self._telling.drop("train", node, error)
        forms = Counter(slots for _, _, slots, _ in read)
        if forms:
            one.slots = forms.most_common(1)[0][0]
        for node, reply, slots, values in read:
            try:
                if slots != one.slots:
                    raise ProtocolError("header", "not the form that most sent")
                one.server.add(node, values)
                one.like = one.like or reply
            except ProtocolError as error:
                self._telling.drop("train", node, error)
        return one.server.survivors()

    def _read(self, reply: Message, most: int) -> tuple[Slots, NDArray[Any]]:
        """Return the places and the masked values, shape (n,), of a reply."""
        largest = WIDEST * (most + MAX_COUNTERS)
        tag = self._tags.get(reply.metadata.src_node_id, "")
        frame = self._stages.verified(MASK, reply, tag, largest)
        slots = self._settings.slots(frame.header.about)
        word = word_of(slots)
        if len(frame.body) != word.itemsize * slots.size:
            raise ProtocolError("size", f"{len(frame.body)} bytes, not {slots.size}")
        return slots, np.frombuffer(frame.body, word)

    def _mean(self, one: _Sum, answers: Mapping[int, bytes]) -> Message:
        """Return the reply that stands for a sum: a mean, or sums of integers."""
        total = one.server.unmask(answers)
        assert one.slots is not None
        assert one.like is not None
        found = one.slots.read(total, one.server.count, label_of(self._session))
        self._telling.sum(found.clients, found.clipped, len(found.values))
        if self._settings.whole:
            sums = with_integers(found.values.astype(np.int64))
            return synthetic_reply(one.like, sums, found.metrics, found.clients)
        array, out = blank((len(found.values),))
        np.divide(found.values, found.clients, out=out, casting="same_kind")
        record = ArrayRecord()
        record[DELTA] = array  # the constructor would make another Array
        update = RecordDict({UPDATE: record})
        examples = max(found.examples, 1)
        return synthetic_reply(one.like, update, found.metrics, examples)
