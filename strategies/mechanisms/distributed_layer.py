"""Server half of distributed differential privacy: the ledger, and nothing else.

The noise is in the sums before the server sees them (:mod:`.distributed`). What is left
to do here is to plan it once, to charge every round before its sum is looked at, and to
end the run before it would overspend. It stands outside the secure sum and reads no
reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram.job import Job

from ..accounting.ledger import Ledger
from ..base import StrategyLayer, walk
from ..server_sgd import ServerSGD
from ..update import Model
from .budget_events import exhausted, tell_spent
from .distributed import DistributedPlan, distributed_plan, groups_of, warning
from .plan import MOST_RATE, RATE

__all__ = ["DistributedDP"]


class DistributedDP(StrategyLayer):
    """Charge a round's secure sum to one ledger, whatever arrives.

    Parameters
    ----------
    job : Job
        Its ``privacy`` and ``secure`` sections and ``train.rounds``.
    inner : Strategy, optional
        The secure sum.

    Guarantees
    ----------
    For the sums of all rounds together: (epsilon, delta)-differential privacy of the
    ledger, for replacing all that one node holds. Trusted: that the secure sum shows
    nothing but sums of at least ``secure.min-cohort`` clients, of whom all but
    ``secure.colluders`` add their noise and keep it to themselves. The server is
    trusted with nothing more than to keep its run and node ids, by which each node
    counts for itself too (:mod:`.spending`: a new Flower run has a budget of its own,
    and a node with a new id begins anew); this ledger is what the report of the run
    tells. A round in which nodes were asked is charged, also if no sum came out.
    Against another client, which knows its own share of the noise, the guarantee holds
    with ``secure.colluders`` at least 1.

    With ``secure.group-size`` a round is charged as the sum of one group: a node is in
    one (:mod:`.distributed`). What the rule inside makes of the groups' means is
    computed from nothing else. Malicious nodes may leave their noise out, too, and all
    of them may be in one group: the guarantee is for at most ``secure.colluders`` of
    them. So groups with none are refused, and so is a ``robust.f`` above it; an
    automatic one goes no further.

    Events
    ------
    ``privacy-plan`` (when nodes are first asked: noise, shares), ``privacy-spent``
    (round, epsilon, spent, delta, clip, noise), ``privacy-exhausted`` (round, epsilon).

    Raises
    ------
    RunError
        In ``configure_train``, when the budget is spent and ``privacy.on-exhausted`` is
        ``stop``.
    """

    def __init__(self, job: Job, inner: Strategy | None = None) -> None:
        super().__init__(inner or ServerSGD())
        self.job = job
        self.plan: DistributedPlan | None = None
        self.ledger: Ledger | None = None
        self._saved: Mapping[str, Any] | None = None
        self._asked = 0  # nodes of this round
        self._cohort = 0  # nodes of the first round that had any
        self._told = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody, for no stage of the secure sum either, if the budget is spent."""
        self._asked, self._model = 0, Model(ArrayRecord(dict(arrays)))
        plan, ledger = self._begin()
        if exhausted(self.job, ledger, plan.release, server_round, self.emit):
            return []
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = len(messages)
        self._tune(plan)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Charge the round, then let the secure sum be looked at."""
        if self._asked:
            plan, ledger = self._begin()
            ledger.charge(plan.release)
            groups = groups_of(self.job, self._asked)
            noise = plan.levels(self._asked // groups)[0]["std"]
            tell_spent(ledger, server_round, plan.on.clip, noise, self.emit)
        return super().aggregate_train(server_round, replies)

    def _begin(self) -> tuple[DistributedPlan, Ledger]:
        """Return plan and ledger, made before the first release."""
        if self.plan is None or self.ledger is None:
            self.plan = distributed_plan(self.job, self.model.spec.size)
            self.ledger = self.plan.ledger(self.job)
            if self._saved is not None:
                self.ledger.load_state(self._saved)
        return self.plan, self.ledger

    def _tune(self, plan: DistributedPlan) -> None:
        """Fix the server's usual rate for the run, and tell the plan.

        For the nodes of the first round that had any: a round without, as when too few
        answer a stage, says nothing about the others. A resumed run keeps it.
        """
        self._cohort = self._cohort or self._asked
        if self._told or not self._cohort:
            return
        groups = groups_of(self.job, self._cohort)
        rate = min(MOST_RATE, RATE / plan.mean_std(self._cohort, groups))
        optimizer = list(walk(self))[-1]
        if self.job.server.lr == 0 and isinstance(optimizer, ServerSGD):
            optimizer.lr = rate
        told = described(plan, self.job, self._cohort, rate)
        self.emit("privacy-plan", **told)
        self._told = True

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        keys = self.job.privacy
        return (
            f"DistributedDP: skellam, epsilon {keys.epsilon:g}, delta {keys.delta:g}, "
            f"clip {keys.clip:g}"
        )

    def state(self) -> dict[str, Any]:
        """Return the ledger, and whom the server's rate was fixed for."""
        ledger = self._saved if self.ledger is None else self.ledger.state()
        return {"ledger": ledger, "cohort": self._cohort}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore it; a ledger that does not add up is refused."""
        self._saved, self._cohort = state["ledger"], int(state["cohort"])


def described(
    plan: DistributedPlan, job: Job, nodes: int, rate: float
) -> dict[str, Any]:
    """Return a plan for an event: numbers, and the guarantee in words."""
    release, keys, groups = plan.release, job.privacy, groups_of(job, nodes)
    return {
        "mechanism": release.mechanism,
        "levels": plan.levels(nodes // groups),
        "unit": "client",
        "relation": release.relation,
        "trust": "distributed",
        "epsilon": keys.epsilon,
        "delta": keys.delta,
        "rounds": plan.rounds,
        "sampling": str(release.sampling),
        "clip": plan.on.clip,
        "cohort": nodes,
        "honest": plan.honest,
        "colluders": job.secure.colluders,
        "server-rate": job.server.lr or float(f"{rate:.4g}"),
        "noise-to-signal": float(f"{plan.ratio(nodes, groups):.4g}"),
        **(_of_groups(plan, job, nodes) if job.secure.group_size else {}),
        "secure-noise": not keys.insecure,
    }


def _of_groups(plan: DistributedPlan, job: Job, nodes: int) -> dict[str, Any]:
    """Return how many sums a round has, and the noise of what the rule inside sees."""
    groups = groups_of(job, nodes)
    return {
        "groups": groups,
        "group-noise-to-signal": float(f"{plan.ratio(nodes // groups):.4g}"),
        "warning": warning(plan, job, nodes),
    }
