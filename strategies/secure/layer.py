"""Server half of secure sums under homomorphic encryption.

The server adds ciphertexts and never holds a key. A round: the nodes that are asked are
fixed and named in every request; their signed frames are verified and added; the sum is
decrypted by nodes that hold the key (:mod:`.holder`), the integers come back, and the
layers inside get one reply, the mean of the updates. All nodes count alike: numbers of
examples are data.

While the model stays as it is, because rounds fail, the server asks for sums over the
same nodes only, or over others altogether (:mod:`.told`).

With ``secure.group-size`` each group has a sum of its own, and the layers inside get
one reply for each group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram._flower import run_id
from truststram.errors import ConfigError, ProtocolError
from truststram.exchange import Phase
from truststram.job import Job
from truststram.records import blank

from ..base import StrategyLayer, synthetic_reply
from ..server_sgd import ServerSGD
from ..update import DELTA
from ..update import UPDATE as UPDATE_RECORD
from .clear import clear_mean
from .federation import Federation
from .given import given_by
from .groups import Groups, rename
from .identity import DECRYPTOR
from .intake import Intake, Verified
from .keys import require_seal
from .opening import AGREE, Opening, Part
from .selection import Selection
from .slots import Summed
from .terms import HELLO, OPEN, UPDATE, Request, label_of, terms_of
from .told import Told
from .trust import trust_line
from .wire import SECURE

__all__ = ["SecureSum"]

# Bytes of one message to a decryptor that adds.
LARGEST_MESSAGE = 2**30
WAITS = (
    "A sum with some of these nodes may have been told for this model; until the model "
    "changes, it must be the same nodes, or others altogether"
)


class SecureSum(StrategyLayer):
    """Hand on the mean of updates that the server cannot see.

    Parameters
    ----------
    job : Job
        Its ``secure`` section with scheme ckks or bfv, and ``round.deadline``.
    inner : Strategy, optional
        Any Flower strategy; gets one reply a round (or one a group).

    Guarantees
    ----------
    What the server learns of the updates is their sum over a set of at least
    ``secure.min-cohort`` nodes, and the sums of their numbers of examples, of clipped
    values and of their training metrics, under the assumptions of
    :func:`.trust.trust_line`, which is told before the first round. Of one model it
    learns sums over equal sets or sets without a common node, also when rounds fail and
    the run is resumed. The sum is exact on the integers that the nodes sent.

    A frame that was changed, cut off, replayed, swapped, or made for another run,
    round, cohort, model, configuration or key, or under other parameters, is dropped
    with its reason, and the round goes on without it; with fewer than
    ``secure.min-cohort`` left, or a sum that is not decrypted or is out of range, the
    round is refused and the model kept. No signature covers a sum: against intent it is
    as good as the nodes that decrypt it. A malicious node may contribute any values up
    to ``secure.clip``; there is no bound on the norm of a single update. With a wrong
    checksum it makes the rounds fail that it takes part in, and nobody can tell which
    node it was.

    Events
    ------
    ``secure-plan`` (once: scheme, trust, bits, clip, most, encrypted, clear,
    clear_fraction, clear_arrays, keys), ``secure-stage`` (round, stage ``open`` or
    ``hello``, asked, answered, bytes_down, bytes_up), ``secure-sum`` (round, clients,
    clipped), ``secure-refused`` (round, code, detail), ``reply-dropped``.

    Raises
    ------
    ConfigError
        In ``configure_train``, if TenSEAL or the roster is missing, or the decryptor is
        to add more than a message can carry.
    RunError
        If nodes of one round would be sent different messages: which record it is.
    """

    reduces = True
    linear = True

    def __init__(self, job: Job, inner: Strategy | None = None) -> None:
        super().__init__(inner or ServerSGD())
        require_seal(job)
        self.job, self.terms = job, terms_of(job)
        self._federation: Federation | None = None
        self._groups: Groups | None = None
        self._told = Told()
        self._request, self._round = Request(UPDATE, 0), 0

    @property
    def federation(self) -> Federation:
        """Roster and grid of the run."""
        if self._federation is None:
            raise RuntimeError("configure_train must be called before aggregate_train")
        return self._federation

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Fix the cohort, and name it and the model in every message."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self._federation is None:
            self._begin(grid)
        federation, self._round = self.federation, server_round
        federation.grid = grid
        if self.terms.parameters.public:
            self._tell_stage(HELLO, federation.find_decryptors(server_round))
        messages = [
            m for m in messages if m.metadata.dst_node_id not in federation.decryptors
        ]
        given = given_by(messages)
        if messages:
            self._told.begin(given.model)
        if messages and not self._groups:  # of groups all nodes are asked anyway
            messages = self._readdressed(messages)
        self._request = Request(
            UPDATE,
            server_round,
            cohort=tuple(sorted(str(m.metadata.dst_node_id) for m in messages)),
            model=given.model,
            content=given.content,
        )
        problem = self._objection(len(messages))
        if problem is not None:
            self._refuse(problem)
            return []
        for message in messages:
            message.content[SECURE] = self._request.record()
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add, have the sums decrypted, hand on their means."""
        intake = Intake(
            self.job, self.federation, self._request, self.model.spec, self._drop
        )
        sets = self._sets(intake.fit(replies))
        means = self._means([s for s in sets if self._is_enough(s)], intake)
        return self.hand_on(server_round, means) if means else (None, None)

    def _begin(self, grid: Grid) -> None:
        """Say who must collude to break this, and what is not encrypted."""
        keys, p = self.job.secure, self.terms.parameters
        self._federation = Federation.of(self.job, grid, str(run_id()))
        decryptors = sum(m.role == DECRYPTOR for m in self._federation.roster)
        if self.terms.adds and decryptors > 1:
            raise ConfigError(
                f"The roster has {decryptors} decryptors. With secure.threat = "
                "malicious there can be one: two could be asked for sums that differ "
                "by one node."
            )
        if keys.group_size and self._groups is None:
            names = [self.name_of(node) for node in grid.get_node_ids()]
            self._groups = Groups.of_job(self.job, names, str(run_id()))
            largest = max(map(len, self._groups.members))
            if largest > p.most:
                raise ConfigError(
                    f"A group has {largest} nodes and secure.max-cohort is {p.most}."
                )
        if self._groups:
            groups = self._groups
            rename(self.inner, lambda node: groups.label_of(self.name_of(node)))
        selection = Selection.of(self.model.spec, keys.layers)
        size, clear = selection.size, selection.clear_size
        self.emit(
            "secure-plan",
            scheme=keys.scheme,
            trust=trust_line(self.job),
            bits=p.bits,
            clip=keys.clip,
            most=p.most,
            encrypted=size - clear,
            clear=clear,
            clear_fraction=round(clear / max(size, 1), 6),
            clear_arrays=list(selection.names)[:100],
            keys="simulated" if self.federation.simulated else "operator",
        )

    def _readdressed(self, messages: list[Message]) -> list[Message]:
        """Return messages to nodes whose sum may be told beside those that were."""
        nodes = {self.name_of(n): n for n in self.federation.grid.get_node_ids()}
        found = {self.name_of(m.metadata.dst_node_id): m for m in messages}
        cohort = self._told.cohort(found, nodes)
        for name in set(cohort) - set(found):
            like = messages[0]
            about = like.metadata
            found[name] = Message(
                RecordDict(dict(like.content.items())),
                nodes[name],
                about.message_type,
                group_id=about.group_id,
            )
        return [found[name] for name in cohort]

    def _objection(self, nodes: int) -> ProtocolError | None:
        keys = self.job.secure
        if self.terms.adds:
            self._check_traffic(nodes)
        most = None if self._groups else self.terms.parameters.most
        if nodes < self.terms.least or (most is not None and nodes > most):
            text = (
                f"{nodes} nodes can be asked; secure.min-cohort = {keys.min_cohort}, "
                f"secure.max-cohort = {keys.max_cohort}"
            )
            if self._told.sets:
                text += f". {WAITS}"
            return ProtocolError("cohort-size", text)
        return None

    def _check_traffic(self, nodes: int) -> None:
        """Refuse, before anybody trains, sums that no message could carry."""
        if self._groups:
            nodes = max(map(len, self._groups.members))
        if self.job.compression.codec != "none":
            return  # what that leaves is known when the updates are there
        frame = self.terms.parameters.most_bytes(self.model.spec.size)
        if nodes * frame > LARGEST_MESSAGE:
            raise ConfigError(
                f"The decryptor would get {nodes} frames of {frame:,} bytes in one "
                f"message, and {LARGEST_MESSAGE:,} bytes are the most. Lower "
                "round.fraction, choose what is encrypted with secure.layers, or use "
                "secure.threat = semi-honest or secure.scheme = secagg."
            )

    def _sets(self, replies: list[Verified]) -> list[list[Verified]]:
        """Return the sets of replies that each have a sum of their own."""
        if not self._groups:
            return [replies]
        sets: list[list[Verified]] = [[] for _ in range(len(self._groups))]
        for reply, frame in replies:
            index = self._groups.index(self.name_of(reply.metadata.src_node_id))
            if index is None:
                error = ProtocolError("unknown-node", "the node is in no group")
                self._drop(reply, error)
            else:
                sets[index].append((reply, frame))
        return sets

    def _is_enough(self, replies: Sequence[Verified]) -> bool:
        """Return whether the sum of these replies may be told."""
        if len(replies) < self.terms.least:
            least = self.terms.least
            text = f"{len(replies)} valid frames, at least {least} are needed"
            self._refuse(ProtocolError("cohort-size", text))
            return False
        if not self._told.allows(self._names(replies)):
            self._refuse(ProtocolError("cohort", WAITS))
            return False
        size = sum(len(frame.body) for _, frame in replies)
        if self.terms.adds and size > LARGEST_MESSAGE:
            self._refuse(ProtocolError("size", f"{size} bytes for the decryptor"))
            return False
        return True

    def _names(self, replies: Sequence[Verified]) -> dict[str, str]:
        """Return who has replied: name in the roster -> the server's name."""
        return {
            frame.member.name: self.name_of(reply.metadata.src_node_id)
            for reply, frame in replies
        }

    def _means(self, sets: Sequence[list[Verified]], intake: Intake) -> list[Message]:
        """Return one reply for each set whose sum was decrypted and is right."""
        if not sets:
            return []
        opening = Opening(
            self.terms,
            self.federation.grid,
            self.federation.roster,
            {**intake.expected, "key": sets[0][0][1].header.key},
            self._request,
            self._told.turn,
            AGREE if self._told.complete and not self.federation.decryptors else 1,
        )
        parts = [intake.added(found) for found in sets]
        replies = [verified for found in sets for verified in found]
        nodes = {r.metadata.src_node_id: frame.member.name for r, frame in replies}
        decryptors = dict.fromkeys(self.federation.decryptors, "")
        opening(parts, decryptors or nodes)
        self._tell_stage(OPEN, opening.phases)
        means = []
        for found, part in zip(sets, parts, strict=True):
            try:
                means.append(self._mean(found, part, opening))
            except ProtocolError as error:
                self._refuse(error)
            if part.told:
                self._told.add(self._names(found))
        if len(means) < len(sets) and not any(part.reopened for part in parts):
            self._told.turn += 1
        return means

    def _mean(
        self, replies: Sequence[Verified], part: Part, opening: Opening
    ) -> Message:
        """Return the reply of a decrypted sum.

        Raises
        ------
        ProtocolError
            If it was not decrypted, or is not such a sum.
        """
        if part.result is None:
            reasons = dict.fromkeys(map(str, opening.reasons)) or ["nobody answered"]
            raise ProtocolError("not-decrypted", "; ".join(reasons)[:500])
        header = replies[0][1].header
        # Whoever decrypted it has compared the checksum, and keeps it.
        slots = replace(self.terms.slots(header.about), checked=False)
        found = slots.read(part.result, len(replies), label_of(header))
        self.emit(
            "secure-sum",
            round=self._round,
            clients=found.clients,
            clipped=round(found.clipped / max(slots.values * found.clients, 1), 6),
        )
        update = self._update(replies, found)
        examples = max(found.examples, 1)
        return synthetic_reply(replies[0][0], update, found.metrics, examples)

    def _update(self, replies: Sequence[Verified], found: Summed) -> RecordDict:
        """Return a content with the mean update, as long as the nodes sent it."""
        mean = (found.values / found.clients).astype(np.float32)
        keys = self.job.secure
        array, out = blank((self.model.spec.size if keys.layers else len(mean),))
        if keys.layers:
            selection = Selection.of(self.model.spec, keys.layers)
            parts = [(reply.content, frame) for reply, frame in replies]
            selection.join(mean, clear_mean(parts, selection, keys.clip), out)
        else:
            out[:] = mean
        record = ArrayRecord()
        record[DELTA] = array  # the constructor would make another Array
        return RecordDict({UPDATE_RECORD: record})

    def _tell_stage(self, stage: str, phases: Sequence[Phase]) -> None:
        """Tell what was exchanged besides requests for updates and their replies."""
        for phase in phases:
            if phase.replies or phase.lost:
                self.emit(
                    "secure-stage",
                    round=self._round,
                    stage=stage,
                    asked=len(phase.replies) + phase.lost,
                    answered=len(phase.replies),
                    bytes_down=phase.bytes_down,
                    bytes_up=phase.bytes_up,
                )

    def _drop(self, reply: Message, error: ProtocolError) -> None:
        self.emit(
            "reply-dropped",
            round=self._round,
            phase="train",
            node=self.name_of(reply.metadata.src_node_id),
            code=error.code,
            detail=error.detail,
        )

    def _refuse(self, error: ProtocolError) -> None:
        self.emit(
            "secure-refused",
            round=self._round,
            code=error.code,
            detail=error.detail,
        )

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        keys = self.job.secure
        return f"SecureSum: {keys.scheme}, key with {keys.key_holder}"

    def state(self) -> dict[str, Any]:
        """Return the groups, and which sums may have been told."""
        groups = self._groups.state() if self._groups else []
        return {"groups": groups, "told": self._told.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them: other groups would tell single updates by subtraction."""
        self._groups = Groups.from_state(state["groups"]) if state["groups"] else None
        self._told = Told.from_state(state["told"])
