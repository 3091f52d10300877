"""Server half of secure aggregation: sums of masked updates, in spite of dropouts.

A round has up to five exchanges with the nodes (:mod:`.secagg`). ``keys`` and
``shares`` are over before anybody trains; the round's train messages are the stage
``mask``, so deadline, quorum and reports are those of any round; whoever has not
answered by then is left out of the sum, and the remaining stages open it.

With ``secure.group-size`` each group is a cohort of its own, and the layers inside get
one reply for each group that still has enough nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from truststram._flower import run_id, with_content
from truststram.errors import ProtocolError, RunError
from truststram.job import Job
from truststram.records import blank, records_of

from ..base import StrategyLayer, synthetic_reply
from ..server_sgd import ServerSGD
from ..update import DELTA, UPDATE
from .federation import Federation
from .graph import MALICIOUS
from .groups import Groups, rename
from .quantise import Coder
from .secagg_server import Server
from .secagg_wire import KEYS, MASK, Request, Settings, label_of, word_of
from .slots import Slots
from .stages import Stages
from .trust import trust_line
from .wire import SECURE, hash_of_model

__all__ = ["SecAggSum"]

# More bytes than a client sends for each client of its cohort, in any stage.
PER_HOLDER = 256
# More places than :class:`.slots.Slots` adds to an update.
MAX_COUNTERS = 512
# Bytes of a masked value, at most.
WIDEST = 8


class SecAggSum(StrategyLayer):
    """Hand on the mean of masked updates.

    Parameters
    ----------
    job : Job
        Its ``secure`` section with scheme secagg, and ``round.deadline``, which every
        stage has.
    inner : Strategy, optional
        Any Flower strategy; gets one reply a round (or one a group).
    encoder : callable, optional
        As in :class:`.secagg_wire.Settings`; the same on the nodes.

    Guarantees
    ----------
    Those of :mod:`.secagg`: the server learns the sum over at least
    ``secure.min-cohort`` nodes and nothing else, under the assumption that is told
    before the first round; the sum is exact on the integers that the nodes sent, as
    long as no more nodes drop out than the threshold allows. A frame that was changed,
    cut off, replayed, swapped, or made for another run, round, cohort or model, or
    under other settings, is dropped with its reason; a round that cannot be opened is
    refused and the model kept. A malicious node may contribute any values up to
    ``secure.clip``; there is no bound on the norm of a single update.

    Events
    ------
    ``secure-plan`` (once: scheme, trust, bits, clip, most, encrypted, keys),
    ``secure-stage`` (round, stage, asked, answered, bytes_down, bytes_up),
    ``secure-sum`` (round, clients, clipped), ``secure-refused`` (round, code, detail),
    ``reply-dropped``.

    Raises
    ------
    ConfigError
        In ``configure_train``, if the roster is missing.
    RunError
        If nodes of one round would be sent different models.
    """

    reduces = True
    linear = True

    def __init__(
        self,
        job: Job,
        inner: Strategy | None = None,
        encoder: Callable[[int], Coder] | None = None,
    ) -> None:
        super().__init__(inner or ServerSGD())
        self.job, self.settings = job, Settings(job, encoder)
        self._federation: Federation | None = None
        self._groups: Groups | None = None
        self._round: _Round | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Exchange keys and shares; return the train messages of who took part."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self._federation is None:
            self._begin(grid)
        assert self._federation is not None
        self._federation.grid = grid
        request = Request(KEYS, server_round, _model_of(messages))
        stages = Stages(
            self._federation, self.settings, request, self.emit, self.name_of
        )
        self._round = _Round(stages, self._cohorts(messages))
        return self._round.begin(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Open the sums of who answered, and hand on their means."""
        current, self._round = self._round, None
        if current is None:
            return None, None
        means = current.finish(list(replies), 2 * self.model.spec.size + 64)
        return self.hand_on(server_round, means) if means else (None, None)

    def _begin(self, grid: Grid) -> None:
        """Say who must collude to break this."""
        keys, quantiser = self.job.secure, self.settings.coder(self.model.spec.size)
        self._federation = Federation.of(self.job, grid, str(run_id()))
        if keys.group_size and self._groups is None:
            names = [self.name_of(node) for node in grid.get_node_ids()]
            self._groups = Groups.of_job(self.job, names, str(run_id()))
        if self._groups:
            groups = self._groups
            rename(self.inner, lambda node: groups.label_of(self.name_of(node)))
        self.emit(
            "secure-plan",
            scheme=keys.scheme,
            trust=trust_line(self.job),
            bits=quantiser.bits,
            clip=keys.clip,
            most=quantiser.most,
            encrypted=self.model.spec.size,
            keys="simulated" if self._federation.simulated else "operator",
        )

    def _cohorts(self, messages: Sequence[Message]) -> list[list[int]]:
        """Return the nodes of each sum."""
        nodes = [message.metadata.dst_node_id for message in messages]
        if not self._groups:
            return [nodes]
        cohorts: list[list[int]] = [[] for _ in range(len(self._groups))]
        for node in nodes:
            index = self._groups.index(self.name_of(node))
            if index is not None:  # it came after the groups were made
                cohorts[index].append(node)
        return cohorts

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        return f"SecAggSum: {self.job.secure.threat} server"

    def state(self) -> dict[str, Any]:
        """Return the groups."""
        return {"groups": self._groups.state() if self._groups else []}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them: other groups would tell single updates by subtraction."""
        self._groups = Groups.from_state(state["groups"]) if state["groups"] else None


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


class _Round:
    """The sums of one round, all of them stage by stage.

    Parameters
    ----------
    stages : Stages
    cohorts : sequence of sequence of int
        The nodes of each sum.
    """

    def __init__(self, stages: Stages, cohorts: Sequence[Sequence[int]]) -> None:
        self._stages, self._settings = stages, stages.settings
        run, roster = stages.federation.run, stages.federation.roster
        self._session = self._settings.session(run, stages.request)
        self._sums = [_Sum(Server(self._session, roster), nodes) for nodes in cohorts]
        self._tags: dict[int, str] = {}  # node -> hash of its cohort, once it is known

    def begin(self, messages: Sequence[Message]) -> list[Message]:
        """Run the stages before training; return the messages of who takes part."""
        bodies = {node: b"" for one in self._sums for node in one.nodes}
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
                self._stages.refuse(error)
            for node, reason in one.server.dropped:
                self._stages.drop(stage, node, reason)
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
                    self._stages.drop("train", node, error)
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
                self._stages.drop("train", node, error)
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
        """Return the reply that stands for a sum."""
        total = one.server.unmask(answers)
        assert one.slots is not None
        assert one.like is not None
        found = one.slots.read(total, one.server.count, label_of(self._session))
        self._stages.emit(
            "secure-sum",
            round=self._session.round,
            clients=found.clients,
            clipped=round(found.clipped / max(len(found.values) * found.clients, 1), 6),
        )
        array, out = blank((len(found.values),))
        np.divide(found.values, found.clients, out=out, casting="same_kind")
        record = ArrayRecord()
        record[DELTA] = array  # the constructor would make another Array
        update = RecordDict({UPDATE: record})
        examples = max(found.examples, 1)
        return synthetic_reply(one.like, update, found.metrics, examples)


def _model_of(messages: Sequence[Message]) -> str:
    """Return the hash of the one model that all messages carry."""
    known: dict[int, str] = {}
    for message in messages:
        for record in records_of(message.content, ArrayRecord):
            if id(record) not in known:
                known[id(record)] = hash_of_model(record)
    if len(set(known.values())) > 1:
        raise RunError(
            "Nodes of one round would be sent different models; under a secure sum "
            "they compare what they were sent."
        )
    return next(iter(known.values()), "0" * 64)
