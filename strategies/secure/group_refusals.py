"""Which settings do not go together with secure sums inside groups, and why."""

from __future__ import annotations

from truststram.job import Job
from truststram.sections import AnomalyKeys

from ..refusal import Refusal
from .sizes import LEAST, least_nodes, objection

__all__ = ["GROUPS"]


def _grouped(job: Job) -> bool:
    return job.secure.on and job.secure.group_size > 0


def _too_few(job: Job) -> bool:
    """Return whether the smallest federation has too few groups for robust.f."""
    keys = job.secure
    if not _grouped(job) or keys.group_size < LEAST:
        return False
    return objection(least_nodes(job), keys.group_size, job.robust.f) is not None


GROUPS: tuple[Refusal, ...] = (
    Refusal(
        lambda job: _grouped(job) and job.secure.group_size < LEAST,
        "secure.group-size below 3",
        "of a sum of two, each node knows the other's part",
        "secure.group-size = 3 or more, or 0 (one sum of all)",
    ),
    Refusal(
        lambda job: job.secure.regroup and job.secure.group_size == 0,
        "secure.regroup without secure.group-size",
        "there are no groups that could change",
        "secure.group-size = 3 or more, or secure.regroup = false",
    ),
    Refusal(
        _too_few,
        "secure.group-size with more attackers than groups can outvote",
        "round.min-nodes / secure.group-size groups must be more than twice robust.f, "
        "since each malicious node may spoil another group: f / K below 1 / (2 g)",
        "raise round.min-nodes or leave it out, lower robust.f or secure.group-size",
    ),
    Refusal(
        lambda job: _grouped(job) and job.secure.group_size < job.secure.min_cohort,
        "secure.group-size below secure.min-cohort",
        "no group would ever have enough nodes for a sum",
        "raise secure.group-size",
    ),
    Refusal(
        lambda job: _grouped(job) and job.round.fraction < 1,
        "secure.group-size with round.fraction below 1",
        "groups are made of all nodes, and few would have all of theirs in a round",
        "round.fraction = 1",
    ),
    Refusal(
        lambda job: _grouped(job) and job.robust.rule == "mean",
        "secure.group-size with robust.rule = mean",
        "the mean of all is what one sum of all gives, and that shows less",
        "secure.group-size = 0, or a robust.rule",
    ),
    Refusal(
        lambda job: _grouped(job) and job.robust.rule == "wfagg-paper",
        "secure.group-size with robust.rule = wfagg-paper",
        "its third filter follows a client over time, and the mean of a group changes "
        "with who of it answers",
        "robust.rule = wfagg, which then uses distance and cosine only",
    ),
    Refusal(
        lambda job: (
            _grouped(job)
            and job.anomaly.quarantine not in (0, AnomalyKeys().quarantine)
        ),
        "anomaly.quarantine with secure.group-size",
        "what is seen is about groups: honest nodes would be left out with a malicious "
        "one, so nobody is",
        "anomaly.quarantine as it is by default (incidents and alerts name groups)",
    ),
)
