"""Which settings do not go together with secure aggregation, and why."""

from __future__ import annotations

from truststram.job import Job

from ..refusal import Refusal
from .graph import MALICIOUS, SEMI_HONEST, colluders
from .secagg import MAX_CLIENTS

__all__ = ["MASKED"]


def _masked(job: Job) -> bool:
    return job.secure.scheme == "secagg"


def _too_many_colluders(job: Job) -> bool:
    """Return whether the smallest cohort cannot bear the assumed colluders.

    Under a malicious server the bound goes up and down with the remainder of the
    cohort's size by three; the next two sizes are looked at as well.
    """
    keys = job.secure
    sizes = range(keys.min_cohort, keys.min_cohort + 3)
    return min(colluders(n, keys.threat) for n in sizes) < keys.colluders


MASKED: tuple[Refusal, ...] = (
    Refusal(
        lambda job: _masked(job) and bool(job.secure.layers),
        "secure.layers with secure.scheme = secagg",
        "masks cost so little that leaving values in clear saves nothing",
        "secure.layers empty (everything is masked)",
    ),
    Refusal(
        lambda job: _masked(job) and job.secure.max_cohort > MAX_CLIENTS,
        "secure.max-cohort with secure.scheme = secagg",
        f"every node gets the keys of all others, so a sum has at most {MAX_CLIENTS}",
        f"secure.max-cohort = {MAX_CLIENTS} or less",
    ),
    Refusal(
        lambda job: _masked(job) and _too_many_colluders(job),
        "secure.colluders with secure.scheme = secagg",
        "so many of a smallest cohort could open what others masked: under a "
        f"{SEMI_HONEST} server less than half may collude, under a {MALICIOUS} one "
        "less than a third",
        "raise secure.min-cohort, or lower secure.colluders",
    ),
)
