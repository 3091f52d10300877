"""A budget in events: what is spent, and what a run does when nothing is left."""

from __future__ import annotations

from truststram.errors import RunError
from truststram.job import Job

from ..accounting.events import Release
from ..accounting.ledger import Ledger
from ..base import Emit

__all__ = ["exhausted", "tell_spent"]


def exhausted(
    job: Job, ledger: Ledger, release: Release, server_round: int, emit: Emit
) -> bool:
    """Return whether a round's release would overspend.

    Events
    ------
    ``privacy-exhausted`` (round, epsilon).

    Raises
    ------
    RunError
        If so, and ``privacy.on-exhausted`` is ``stop``.
    """
    if not ledger.would_exceed(release):
        return False
    epsilon = round(ledger.spent(), 6)
    if job.privacy.on_exhausted == "stop":
        raise RunError(
            f"The privacy budget is spent before round {server_round}: epsilon "
            f"{epsilon:g} of {ledger.epsilon:g} at delta {ledger.delta:g}. The "
            "model of the last round is kept. privacy.on-exhausted = evaluate-only "
            "would go on without training."
        )
    emit("privacy-exhausted", round=server_round, epsilon=epsilon)
    return True


def tell_spent(
    ledger: Ledger, server_round: int, clip: float, noise: float, emit: Emit
) -> None:
    """Say what all releases so far cost, and how loud the last noise was.

    Events
    ------
    ``privacy-spent`` (round, epsilon, spent, delta, clip, noise).
    """
    emit(
        "privacy-spent",
        round=server_round,
        epsilon=round(ledger.claim(), 6),
        spent=round(ledger.spent(), 6),
        delta=ledger.delta,
        clip=float(f"{clip:.6g}"),
        noise=float(f"{noise:.6g}"),
    )
