"""Server half of secure aggregation: sums of masked updates, in spite of dropouts.

A round has up to five exchanges with the nodes (:mod:`.secagg`). ``keys`` and
``shares`` are over before anybody trains; the round's train messages are the stage
``mask``, so deadline, quorum and reports are those of any round; whoever has not
answered by then is left out of the sum, and the remaining stages open it.

With ``secure.group-size`` each group is a cohort of its own, and the layers inside get
one reply for each group that still has enough nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram._flower import run_id
from truststram.job import Job

from ..base import StrategyLayer
from ..server_sgd import ServerSGD
from .federation import Federation
from .given import given_by
from .groups import Groups, of_round
from .integers import runs_of
from .quantise import Coder
from .secagg_round import Round
from .secagg_wire import KEYS, Request, Settings
from .stages import Stages
from .telling import Telling
from .trust import trust_line
from .whole import WholeNumbers

__all__ = ["SecAggSum"]


class SecAggSum(StrategyLayer):
    """Hand on the mean of masked updates.

    Parameters
    ----------
    job : Job
        Its ``secure`` section with scheme secagg, and ``round.deadline``, which every
        stage has.
    inner : Strategy, optional
        Any Flower strategy; gets one reply a round (or one a group). One with an
        attribute ``integers`` gets the exact sums of whole numbers (:mod:`.integers`).
    encoder : callable, optional
        As in :class:`.secagg_wire.Settings`; the same on the nodes.

    Guarantees
    ----------
    Those of :mod:`.secagg`: the server learns the sum over at least
    ``secure.min-cohort`` nodes and nothing else, under the assumption that is told
    before the first round; the sum is exact on the integers that the nodes sent, as
    long as no more nodes drop out than the threshold allows. A frame that was changed,
    cut off, replayed, swapped, or made for another run, round, cohort, model or
    configuration, or under other settings, is dropped with its reason; a round that
    cannot be opened is refused and the model kept; a node that made it fail by wrong
    shares, provably, is left out of later rounds (if it was in the sum itself, the
    others have opened that sum as far as they know, and wait for another model: the run
    ends). A cohort outside
    ``secure.min-cohort`` and ``secure.max-cohort`` is refused before anybody trains. A
    malicious node may contribute any values up to
    ``secure.clip``; there is no bound on the norm of a single update.

    Events
    ------
    ``secure-plan`` (once: scheme, trust, bits, clip, most, encrypted, keys),
    ``secure-stage`` (round, stage, asked, answered, bytes_down, bytes_up),
    ``secure-sum`` (round, clients, clipped), ``secure-refused`` (round, code, detail),
    ``secure-groups`` (round, groups: with ``secure.regroup``), ``reply-dropped``.

    Raises
    ------
    ConfigError
        In ``configure_train``, if the roster is missing.
    RunError
        If nodes of one round would be sent different messages: which record it is.
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
        runs, most = runs_of(self.inner), job.secure.max_cohort
        whole = WholeNumbers(runs, most) if runs else None
        self.job, self.settings = job, Settings(job, encoder, whole)
        self._federation: Federation | None = None
        self._groups: Groups | None = None
        self._round: Round | None = None
        self._cheats: set[str] = set()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Exchange keys and shares; return the train messages of who took part."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self._federation is None:
            self._begin(grid)
        assert self._federation is not None
        self._federation.grid = grid
        given = given_by(messages)
        request = Request(KEYS, server_round, given.model, content=given.content)
        telling = Telling(self.emit, self.name_of, server_round)
        stages = Stages(self._federation, self.settings, request, telling)
        groups = of_round(self._groups, self.job, given.model, self.inner, telling)
        cohorts = self._cohorts(messages, stages, groups)
        self._round = Round(stages, cohorts, self._cheats)
        return self._round.begin(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Open the sums of who answered, and hand on their means."""
        current, self._round = self._round, None
        if current is None:
            return None, None
        whole, size = self.settings.whole, self.model.spec.size
        means = current.finish(list(replies), whole.size if whole else 2 * size + 64)
        return self.hand_on(server_round, means) if means else (None, None)

    def _begin(self, grid: Grid) -> None:
        """Say who must collude to break this."""
        keys, whole = self.job.secure, self.settings.whole
        quantiser = self.settings.coder(self.model.spec.size)
        self._federation = Federation.of(self.job, grid, str(run_id()))
        names = [self.name_of(node) for node in grid.get_node_ids()]
        self._groups = Groups.settled(self._groups, self.job, names, str(run_id()))
        self.emit(
            "secure-plan",
            scheme=keys.scheme,
            trust=trust_line(self.job),
            bits=quantiser.bits,
            clip=None if quantiser.noised or whole else keys.clip,
            most=quantiser.most,
            encrypted=whole.size if whole else self.model.spec.size,
            keys="simulated" if self._federation.simulated else "operator",
        )

    def _cohorts(
        self, messages: Sequence[Message], stages: Stages, groups: Groups | None
    ) -> list[list[int]]:
        """Return the nodes of each sum."""
        nodes = [message.metadata.dst_node_id for message in messages]
        if not groups:
            return [nodes]
        return groups.parted(nodes, self.name_of, partial(stages.telling.drop, KEYS))

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        return f"SecAggSum: {self.job.secure.threat} server"

    def state(self) -> dict[str, Any]:
        """Return the groups, and who is proven to have dealt wrong shares."""
        groups = self._groups.state() if self._groups else []
        return {"groups": groups, "cheats": sorted(self._cheats)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them: other groups would tell single updates by subtraction."""
        self._groups = Groups.from_state(state["groups"]) if state["groups"] else None
        self._cheats = set(state.get("cheats", []))
