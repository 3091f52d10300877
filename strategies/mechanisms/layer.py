"""Server half of differential privacy: clip, sum, add noise, account.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018
(fixed denominator, clients as units); clip that follows a quantile: Andrew et al.,
"Differentially Private Learning with Adaptive Clipping", NeurIPS 2021. Differences:
integers on a lattice instead of floating point, and every mechanism of
:mod:`..accounting` instead of the Gaussian.

Mathematics (updates U_j, shape (d,), of the nodes that were drawn)
-------------------------------------------------------------------
``x = (sum_j clip_C(U_j) + noise) / m`` with ``m = q N``, whoever answered: dividing by
the number of answers would release it. Each registered node is drawn with probability
q, independently, without a second draw for an empty cohort; or exactly m of N are
(``privacy.sampling = fixed``).
``C <- C exp(-0.2 (b - gamma))``, b the noisy fraction of updates that were not longer
than C and gamma the quantile asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram.job import Job
from truststram.records import Float32
from truststram.result import is_lower_better
from truststram.rng import derive_seed

from ..accounting.events import Release
from ..accounting.ledger import Ledger
from ..accounting.schedule import OnPlateau
from ..base import StrategyLayer, sole_metrics, synthetic_reply, walk
from ..server_sgd import ServerSGD
from ..update import blank_update
from .budget_events import exhausted, tell_spent
from .cohort import check_population, drawn
from .csprng import Source
from .evaluation import ACCURACY, noisy_mean_accuracy
from .plan import Plan
from .sums import followed, noisy_mean

__all__ = ["CentralDP"]


class CentralDP(StrategyLayer):
    """Release only a noisy sum of clipped updates, under one ledger.

    Parameters
    ----------
    job : Job
        Its ``privacy`` section, ``train.rounds`` and ``round.fraction``.
    inner : Strategy, optional
        Server optimizer; gets one reply, the noisy mean. It must address every node:
        the cohort is drawn here.

    Guarantees
    ----------
    For the models of all rounds together: (epsilon, delta)-differential privacy of the
    ledger, for one node added or removed (or replaced: ``privacy.relation``), whatever
    all nodes send. With ``privacy.schedule = on-plateau`` the noise depends on earlier
    rounds and a Rényi filter composes it; :meth:`observe` must be told of public test
    data only. Trusted: the server, which sees single updates and knows the cohort.
    Not covered: who is registered, when messages were sent, and the server's own events
    and report, which tell how many nodes took part in a round (the cohort is a secret
    that amplifies the guarantee) and name those whose replies were dropped. For the
    ball mechanisms the finite bits of the samplers are not accounted for. The ledger is
    charged before the noise is drawn and is part of the round's record; a round without
    a record was not released and runs again with fresh noise. A run ends before it
    would overspend.

    Events
    ------
    ``privacy-plan`` (once: mechanism, noise, guarantee in words), ``privacy-spent``
    (round; epsilon, which a run that was planned to end here may claim: the budget
    under ``on-plateau``; spent, what the ledger counts; delta, clip, noise; again after
    an evaluation by the nodes),
    ``privacy-exhausted`` (round, epsilon).

    Raises
    ------
    RunError
        In ``configure_train``, when the budget is spent and ``privacy.on-exhausted`` is
        ``stop``, or when the number of nodes changed under fixed-size sampling.
    """

    reduces = True
    needs_plaintext = True
    always_releases: ClassVar[bool] = True
    secret_cohort: ClassVar[bool] = True

    def __init__(self, job: Job, inner: Strategy | None = None) -> None:
        super().__init__(inner or ServerSGD())
        self.job = job
        self.clip = job.privacy.clip
        self.plan: Plan | None = None
        self.ledger: Ledger | None = None
        self._nodes = 0  # registered when the run began
        self._rounds = job.train.rounds  # planned when the run began
        self._saved: Mapping[str, Any] | None = None
        self._source = Source()
        self._asked: Message | None = None  # whose metadata the released reply has
        self._spent = False
        self._release: Release | None = None  # of this round
        self._pace: OnPlateau | None = None
        self._saved_pace: Mapping[str, Any] | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort; plan first, if it is the first round."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self.job.privacy.insecure:  # the same stream when a round runs again
            seed = derive_seed(self.job.run.seed, "privacy", server_round)
            self._source = Source.insecure(seed)
        self._begin(len(messages))
        plan, _ = self._planned()
        if self.job.privacy.sampling == "fixed":
            check_population(self._nodes, len(messages))
        self._release = self._pace.release if self._pace else plan.at(server_round)
        self._asked = messages[0] if messages else None
        self._spent = self._check_budget(server_round)
        if self._spent:
            return []
        return drawn(messages, plan.setting.sampling, self._source)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Release the noisy mean, also of an empty cohort."""
        if self._spent or self._asked is None or self._release is None:
            return None, None
        plan, ledger = self._planned()
        ledger.charge(self._release)
        update, values = blank_update(self.model.spec)
        clip_used = self.clip
        self._write(plan, self._release, list(replies), values)
        self._tell_spent(server_round, clip_used)
        like = Message(RecordDict(), reply_to=self._asked)
        reply = synthetic_reply(like, update, {}, plan.cohort)
        return self.hand_on(server_round, [reply])

    def observe(self, server_round: int, metrics: Mapping[str, float | None]) -> None:
        """Learn how good the released model is, on public data: for ``on-plateau``."""
        if self._pace is None or not metrics:
            return
        plan, ledger = self._planned()
        name, value = next(iter(metrics.items()))
        score = math.nan if value is None else value
        left = plan.rounds - server_round
        self._pace.observe(
            score if is_lower_better(name) else -score,
            lambda release: left > 0 and not ledger.would_exceed(release, left),
        )

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Release the noisy mean of the nodes' accuracies, if that was planned.

        Over all registered nodes: one that does not answer counts as one half.
        """
        release = self.plan.evaluation if self.plan else None
        if release is None:
            return super().aggregate_evaluate(server_round, replies)
        _, ledger = self._planned()
        if ledger.would_exceed(release):
            spent = round(ledger.spent(), 6)
            self.emit("privacy-exhausted", round=server_round, epsilon=spent)
            return None
        ledger.charge(release)
        told = [sole_metrics(r.content) for r in replies if r.has_content()]
        mean = noisy_mean_accuracy(told, release, self._source, self._nodes)
        self._tell_spent(server_round, self.clip)
        return MetricRecord({ACCURACY: mean})

    def _begin(self, nodes: int) -> None:
        """Fix the number of registered nodes and the plan, before the first release.

        A run that goes on with more rounds keeps its first plan: noise that was chosen
        after looking at outputs could not be composed as a fixed sequence.
        """
        if self.plan is not None:
            return
        self._nodes = self._nodes or nodes
        first = self.job.replace({"train.rounds": self._rounds})
        self.plan = Plan.of(first, self._nodes, self.model.spec.size)
        self.ledger = self.plan.ledger(self.job)
        if self.plan.adaptive:
            self._pace = OnPlateau(self.plan.release)
            if self._saved_pace is not None:
                self._pace.load_state(self._saved_pace)
        if self._saved is not None:
            self.ledger.load_state(self._saved)
        optimizer = list(walk(self))[-1]
        if self.job.server.lr == 0 and isinstance(optimizer, ServerSGD):
            optimizer.lr = self.plan.server_rate
        told = self.plan.described(self.job)
        self.emit("privacy-plan", **told, **{"secure-noise": self._source.secure})

    def _planned(self) -> tuple[Plan, Ledger]:
        if self.plan is None or self.ledger is None:
            raise RuntimeError("configure_train must be called before aggregate_train")
        return self.plan, self.ledger

    def _check_budget(self, server_round: int) -> bool:
        """Return whether the budget is spent; stop the run then if it should."""
        _, ledger = self._planned()
        return self._release is not None and exhausted(
            self.job, ledger, self._release, server_round, self.emit
        )

    def _write(
        self, plan: Plan, release: Release, replies: list[Message], out: Float32
    ) -> None:
        """Write the noisy mean to ``out`` (d,); let the clip follow its quantile."""
        valid = [reply for reply in replies if reply.has_content()]
        quantile, count = self.job.privacy.clip_quantile, None
        if plan.counts:
            release, count = plan.split(release)
        short = noisy_mean(
            *(valid, self.model, release, plan.in_norm(self.clip), plan.cohort),
            *(out, self._source, self._tell_drop),
        )
        if count is not None:
            self.clip = followed(
                *(self.clip, quantile, short, count, plan.cohort, self._source)
            )

    def _tell_spent(self, server_round: int, clip_used: float) -> None:
        plan, ledger = self._planned()
        noise = plan.std_of(self._release) if self._release else 0.0
        tell_spent(ledger, server_round, clip_used, noise, self.emit)

    def _tell_drop(self, reply: Message, code: str) -> None:
        """Say that an update counted as zero; it still was part of the cohort."""
        node = self.name_of(reply.metadata.src_node_id)
        self.emit("update-zeroed", node=node, code=code)

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        keys = self.job.privacy
        return (
            f"CentralDP: {keys.mechanism}, epsilon {keys.epsilon:g}, delta "
            f"{keys.delta:g}, clip {keys.clip:g}"
        )

    def state(self) -> dict[str, Any]:
        """Return the ledger, the clip, the pace, and what the plan was made for."""
        ledger = self._saved if self.ledger is None else self.ledger.state()
        pace = self._saved_pace if self._pace is None else self._pace.state()
        return {
            "ledger": ledger,
            "clip": self.clip,
            "nodes": self._nodes,
            "rounds": self._rounds,
            "pace": pace,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them; a ledger that does not add up is refused."""
        self._saved, self.clip = state["ledger"], float(state["clip"])
        self._nodes, self._rounds = int(state["nodes"]), int(state["rounds"])
        self._saved_pace = state["pace"]
