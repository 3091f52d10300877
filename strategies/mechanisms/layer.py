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
q, independently, without a second draw for an empty cohort.
``C <- C exp(-0.2 (b - gamma))``, b the noisy fraction of updates that were not longer
than C and gamma the quantile asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram.errors import ProtocolError, RunError
from truststram.job import Job
from truststram.rng import derive_seed

from ..accounting.ledger import Ledger
from ..base import StrategyLayer, synthetic_reply, walk
from ..server_sgd import ServerSGD
from ..update import blank_update, read_delta
from .clip import clip
from .csprng import Source
from .lattice import Lattice, from_lattice
from .noise import draw, lattice_for, support
from .plan import Plan

__all__ = ["CentralDP"]

# Learning rate of the clip, in logarithms (Andrew et al., section 3).
CLIP_RATE = 0.2
# A count of unclipped updates is +-1/2 for each; with a count on a lattice of 2**-20.
HALF = 0.5


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
    all nodes send. Trusted: the server, which sees single updates and knows the cohort.
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
    (round, epsilon, delta, clip), ``privacy-exhausted`` (round, epsilon).

    Raises
    ------
    RunError
        In ``configure_train``, when the budget is spent and ``privacy.on-exhausted`` is
        ``stop``.
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
        self._saved: Mapping[str, Any] | None = None
        self._source = Source()
        self._asked: Message | None = None  # whose metadata the released reply has
        self._spent = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort; plan first, if it is the first round."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self.job.privacy.insecure:  # the same stream when a round runs again
            seed = derive_seed(self.job.run.seed, "privacy", server_round)
            self._source = Source.insecure(seed)
        self._begin(len(messages))
        self._asked = messages[0] if messages else None
        self._spent = self._check_budget(server_round)
        return [] if self._spent else self._drawn(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Release the noisy mean, also of an empty cohort."""
        if self._spent or self._asked is None:
            return None, None
        plan, ledger = self._planned()
        ledger.charge(plan.release)
        valid = [reply for reply in replies if reply.has_content()]
        update, values = blank_update(self.model.spec)
        clipped = self._released(plan, valid, values)
        clip_used = self.clip
        if self.job.privacy.clip_quantile:
            self.clip = self._followed(plan, clipped)
        self.emit(
            "privacy-spent",
            round=server_round,
            epsilon=round(ledger.spent(), 6),
            delta=ledger.delta,
            clip=float(f"{clip_used:.6g}"),
        )
        like = Message(RecordDict(), reply_to=self._asked)
        reply = synthetic_reply(like, update, {}, plan.cohort)
        return self.hand_on(server_round, [reply])

    def _begin(self, nodes: int) -> None:
        """Fix the number of registered nodes and the plan, before the first release."""
        if self.plan is not None:
            return
        self._nodes = self._nodes or nodes
        self.plan = Plan.of(self.job, self._nodes, self.model.spec.size)
        self.ledger = self.plan.ledger(self.job)
        if self._saved is not None:
            self.ledger.load_state(self._saved)
        optimizer = list(walk(self))[-1]
        if self.job.server.lr == 0 and isinstance(optimizer, ServerSGD):
            optimizer.lr = self.plan.server_rate
        self.emit("privacy-plan", **described(self.plan, self.job, self._source))

    def _planned(self) -> tuple[Plan, Ledger]:
        if self.plan is None or self.ledger is None:
            raise RuntimeError("configure_train must be called before aggregate_train")
        return self.plan, self.ledger

    def _check_budget(self, server_round: int) -> bool:
        """Return whether the budget is spent; stop the run then if it should."""
        plan, ledger = self._planned()
        if not ledger.would_exceed(plan.release):
            return False
        epsilon = round(ledger.spent(), 6)
        if self.job.privacy.on_exhausted == "stop":
            raise RunError(
                f"The privacy budget is spent before round {server_round}: epsilon "
                f"{epsilon:g} of {ledger.epsilon:g} at delta {ledger.delta:g}. The "
                "model of the last round is kept. privacy.on-exhausted = evaluate-only "
                "would go on without training."
            )
        self.emit("privacy-exhausted", round=server_round, epsilon=epsilon)
        return True

    def _drawn(self, messages: list[Message]) -> list[Message]:
        """Return each message with probability q, independently."""
        rate = self.job.round.fraction
        if rate >= 1:
            return messages
        chosen = self._source.uniforms(len(messages)) <= rate
        return [m for m, kept in zip(messages, chosen.tolist(), strict=True) if kept]

    def _released(
        self, plan: Plan, replies: Sequence[Message], out: np.ndarray[Any, Any]
    ) -> list[bool]:
        """Write the noisy mean to ``out`` (d,); return who was not longer than C."""
        release = plan.release
        if self.job.privacy.clip_quantile:
            release, _ = plan.split()
        d = len(out)
        on = lattice_for(release, plan.in_norm(self.clip), d)
        on.check_sum(len(replies), support(release, on.units, d))
        total = draw(release, on.units, d, self._source)
        whole = [self._add(reply, on, total) for reply in replies]
        out[:] = from_lattice(total, on, plan.cohort)
        return whole

    def _add(self, reply: Message, on: Lattice, total: np.ndarray[Any, Any]) -> bool:
        """Add one clipped update; return whether it was short enough as it was."""
        try:
            delta = np.ascontiguousarray(read_delta(reply.content, self.model))
        except ProtocolError as error:
            self._tell_drop(reply, error.code)
            return True
        clipped = clip(delta, on)
        if not clipped.finite:
            self._tell_drop(reply, "not-finite")
        total += clipped.integers
        return clipped.finite and clipped.norm <= on.clip

    def _tell_drop(self, reply: Message, code: str) -> None:
        """Say that an update counted as zero; it still was part of the cohort."""
        node = self.name_of(reply.metadata.src_node_id)
        self.emit("update-zeroed", node=node, code=code)

    def _followed(self, plan: Plan, short: Sequence[bool]) -> float:
        """Return the next clip, from a noisy count."""
        _, count = plan.split()
        on = lattice_for(count, HALF, 1)
        exact = np.array([sum(HALF if s else -HALF for s in short) / on.step], np.int64)
        noisy = float(
            from_lattice(exact + draw(count, on.units, 1, self._source), on)[0]
        )
        below = noisy / plan.cohort + HALF
        step = CLIP_RATE * (below - self.job.privacy.clip_quantile)
        return self.clip * math.exp(-min(max(step, -CLIP_RATE), CLIP_RATE))

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        keys = self.job.privacy
        return (
            f"CentralDP: {keys.mechanism}, epsilon {keys.epsilon:g}, delta "
            f"{keys.delta:g}, clip {keys.clip:g}"
        )

    def state(self) -> dict[str, Any]:
        """Return the ledger, the clip and the number of registered nodes."""
        ledger = self._saved if self.ledger is None else self.ledger.state()
        return {"ledger": ledger, "clip": self.clip, "nodes": self._nodes}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore them; a ledger that does not add up is refused."""
        self._saved, self.clip = state["ledger"], float(state["clip"])
        self._nodes = int(state["nodes"])


def described(plan: Plan, job: Job, source: Source) -> dict[str, Any]:
    """Return a plan for an event: numbers, and the guarantee in words."""
    release, keys = plan.release, job.privacy
    return {
        "mechanism": release.mechanism,
        "scale": release.scale or None,
        "epsilon0": release.epsilon0 or None,
        "unit": plan.setting.unit,
        "relation": plan.setting.relation,
        "trust": plan.setting.trust,
        "epsilon": keys.epsilon,
        "delta": keys.delta,
        "rounds": plan.rounds,
        "sampling": str(release.sampling),
        "clip": plan.clip,
        "cohort": plan.cohort,
        "server-rate": job.server.lr or float(f"{plan.server_rate:.4g}"),
        "noise-to-signal": float(f"{plan.noise_to_signal:.4g}"),
        "secure-noise": source.secure,
    }
