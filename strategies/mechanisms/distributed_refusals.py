"""Which settings do not go together with noise in shares, and why."""

from __future__ import annotations

from truststram.job import Job
from truststram.private_sections import SecureKeys

from ..refusal import Refusal

__all__ = ["DISTRIBUTED"]


def _is_shared(job: Job) -> bool:
    return job.privacy.distributed


DISTRIBUTED: tuple[Refusal, ...] = (
    Refusal(
        lambda job: _is_shared(job) and job.secure.scheme == "none",
        "privacy.trust = distributed without a secure sum",
        "each node adds a share of the noise, which protects the sum and not what the "
        "node sends",
        "secure.scheme = secagg, or privacy.trust = local or central",
    ),
    Refusal(
        lambda job: _is_shared(job) and job.secure.scheme in ("bfv", "ckks"),
        "privacy.trust = distributed with secure.scheme = bfv or ckks",
        "whoever holds the key could open single updates, and a place of a ciphertext "
        "is too narrow for the noise",
        "secure.scheme = secagg",
    ),
    Refusal(
        lambda job: (
            _is_shared(job)
            and (
                job.privacy.unit != "client"
                or job.privacy.mechanism not in ("auto", "skellam")
            )
        ),
        "privacy.trust = distributed with other noise than skellam",
        "shares must add up to the noise that is accounted for, of whichever nodes "
        "they come",
        "privacy.mechanism = skellam or auto, with privacy.unit = client",
    ),
    Refusal(
        lambda job: job.privacy.mechanism == "skellam" and not _is_shared(job),
        "privacy.mechanism = skellam without privacy.trust = distributed",
        "noise that one party adds has no need to add up, and Gaussian noise is "
        "smaller for the same guarantee",
        "privacy.trust = distributed, or privacy.mechanism = gaussian",
    ),
    Refusal(
        lambda job: (
            _is_shared(job) and job.secure.group_size > 0 and not job.secure.colluders
        ),
        "privacy.trust = distributed in groups without secure.colluders",
        "groups and their rule are there for malicious nodes, which may leave out "
        "their shares of the noise: their group has less than is accounted for",
        "secure.colluders = the malicious nodes there may be (secure.min-cohort must "
        "exceed it by 3), or secure.group-size = 0 with robust.rule = mean",
    ),
    Refusal(
        lambda job: (
            _is_shared(job)
            and job.secure.group_size > 0
            and job.robust.f > job.secure.colluders
        ),
        "privacy.trust = distributed with robust.f above secure.colluders",
        "a malicious node may leave out its share of the noise, and all of them may be "
        "in one group",
        "secure.colluders of at least robust.f (which secure.min-cohort must exceed by "
        "3), or robust.f = -1 (automatic), which then assumes no more than those",
    ),
    Refusal(
        lambda job: _is_shared(job) and job.secure.clip != SecureKeys().clip,
        "secure.clip with privacy.trust = distributed",
        "whole updates are clipped to privacy.clip, and it would be ignored",
        "privacy.clip, with secure.clip as it is by default",
    ),
    Refusal(
        lambda job: _is_shared(job) and job.privacy.evaluate_epsilon > 0,
        "privacy.trust = distributed with privacy.evaluate-epsilon",
        "accuracies of single nodes are not part of the secure sum",
        "privacy.evaluate-epsilon = 0 and evaluation by the server",
    ),
    Refusal(
        lambda job: _is_shared(job) and job.compression.codec != "none",
        "privacy.trust = distributed with compression.codec",
        "the noise is planned for every value of the update, on its own lattice",
        "compression.codec = none",
    ),
)
