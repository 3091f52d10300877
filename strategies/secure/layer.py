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
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram._flower import run_id
from truststram.errors import ProtocolError
from truststram.exchange import Phase
from truststram.job import Job

from ..base import StrategyLayer
from ..server_sgd import ServerSGD
from .federation import Federation
from .given import given_by
from .groups import Groups, of_round
from .intake import Intake, Verified
from .keys import require_seal
from .mean import mean_of
from .opening import AGREE, Opening
from .plan import WAITS, check_roster, check_traffic, fits, objection, plan_of
from .telling import Telling
from .terms import HELLO, OPEN, UPDATE, Request, terms_of
from .told import Told
from .wire import SECURE

__all__ = ["SecureSum"]


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
    clipped), ``secure-refused`` (round, code, detail), ``secure-groups`` (round,
    groups: with ``secure.regroup``), ``reply-dropped``.

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
        self._now: Groups | None = None  # those of the round
        self._told = Told()
        self._request = Request(UPDATE, 0)
        self._telling = Telling(self.emit, self.name_of, 0)

    @property
    def federation(self) -> Federation:
        """Roster and grid of the run."""
        if self._federation is None:
            raise RuntimeError("configure_train must be called before aggregate_train")
        return self._federation

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Fix the cohort, and name it and what it gets in every message."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._telling = Telling(self.emit, self.name_of, server_round)
        federation = self._known(grid)
        messages = [
            m for m in messages if m.metadata.dst_node_id not in federation.decryptors
        ]
        given = given_by(messages)
        if messages:
            self._told.begin(given.model)
            self._now = of_round(
                *(self._groups, self.job, given.model, self.inner, self._telling)
            )
        if messages and not self._groups:  # of groups all nodes are asked anyway
            messages = self._readdressed(messages)
        self._request = Request(
            UPDATE,
            server_round,
            cohort=tuple(sorted(str(m.metadata.dst_node_id) for m in messages)),
            model=given.model,
            content=given.content,
        )
        largest = len(messages)
        if self._groups:
            largest = max(map(len, self._groups.members))
        check_traffic(self.terms, largest, self.model.spec)
        if problem := objection(self.terms, len(messages), largest, self._told):
            self._telling.refuse(problem)
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
        sets = [intake.fit(replies)]
        if self._now:
            sets = self._now.parted(
                sets[0], self._name_of, lambda one, error: self._drop(one[0], error)
            )
        means = self._means([s for s in sets if self._is_enough(s)], intake)
        return self.hand_on(server_round, means) if means else (None, None)

    def _known(self, grid: Grid) -> Federation:
        """Return the federation, with the decryptors that are connected.

        Before the first round it is said who must collude to break this.
        """
        begins = self._federation is None
        if self._federation is None:
            self._federation = Federation.of(self.job, grid, str(run_id()))
            check_roster(self.terms, self._federation)
            plan = plan_of(self.terms, self._federation, self.model.spec)
            self.emit("secure-plan", **plan)
        federation = self._federation
        federation.grid = grid
        if self.terms.parameters.public:
            self._tell_stage(HELLO, federation.find_decryptors(self._telling.round))
        if begins:
            trains = set(grid.get_node_ids()) - federation.decryptors
            names = list(map(self.name_of, trains))
            self._groups = Groups.settled(self._groups, self.job, names, str(run_id()))
        return federation

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

    def _is_enough(self, replies: Sequence[Verified]) -> bool:
        """Return whether the sum of these replies may be told."""
        if len(replies) < self.terms.least:
            least = self.terms.least
            text = f"{len(replies)} valid frames, at least {least} are needed"
            self._telling.refuse(ProtocolError("cohort-size", text))
            return False
        if not self._told.allows(self._names(replies)):
            self._telling.refuse(ProtocolError("cohort", WAITS))
            return False
        size = sum(len(frame.body) for _, frame in replies)
        if self.terms.adds and not fits(size):
            self._telling.refuse(
                ProtocolError("size", f"{size} bytes for the decryptor")
            )
            return False
        return True

    def _names(self, replies: Sequence[Verified]) -> dict[str, str]:
        """Return who has replied: name in the roster -> the server's name."""
        return {
            frame.member.name: self._name_of((reply, frame)) for reply, frame in replies
        }

    def _name_of(self, reply: Verified) -> str:
        return self.name_of(reply[0].metadata.src_node_id)

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
                about = (self.terms, self.model.spec)
                means.append(mean_of(*about, found, part, opening, self._telling))
            except ProtocolError as error:
                self._telling.refuse(error)
            if part.told:
                self._told.add(self._names(found))
        if len(means) < len(sets) and not any(part.reopened for part in parts):
            self._told.turn += 1
        return means

    def _tell_stage(self, stage: str, phases: Sequence[Phase]) -> None:
        """Tell what was exchanged besides requests for updates and their replies."""
        for phase in phases:
            if phase.replies or phase.lost:
                self._telling.stage(stage, len(phase.replies), phase)

    def _drop(self, reply: Message, error: ProtocolError) -> None:
        self._telling.drop("train", reply.metadata.src_node_id, error)

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
