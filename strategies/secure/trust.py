"""Who must collude to break a secure sum, in one line: told before every run."""

from __future__ import annotations

from truststram.job import Job

from .graph import MALICIOUS
from .groups import LEAST
from .keys import HE

__all__ = ["trust_line"]


def trust_line(job: Job) -> str:
    """Return what a job's secure sum protects against, in one line.

    For a job with a ``secure.scheme``.
    """
    keys = job.secure
    count = max(keys.min_cohort, LEAST + keys.colluders)
    least = f"The server sees sums of at least {count} nodes"
    if keys.group_size:
        least += " (those of each group)"
    if keys.scheme not in HE:
        return least + _masked(keys.threat)
    if keys.key_holder == "clients":
        return (
            f"{least}, if it follows the protocol; every node has the key: any one "
            "node together with the server can read every update."
        )
    if keys.threat == "malicious":
        return (
            f"{least}, whatever it does, unless it colludes with the decryptor, which "
            "adds the signed frames itself and could read every update."
        )
    return (
        f"{least}, if it follows the protocol; server and decryptor together can read "
        "every update, and a server that does not follow it can have single ones "
        "decrypted (secure.threat = malicious prevents that)."
    )


def _masked(threat: str) -> str:
    """Return the line's end for secure aggregation (:mod:`.secagg`)."""
    if threat == MALICIOUS:
        return (
            ", whatever it does, unless a third of a sum's nodes collude with it; sums "
            "are exact as long as less than a third of their nodes drop out."
        )
    return (
        ", if it follows the protocol, unless half of a sum's nodes collude with it; "
        "sums are exact as long as no more than half of their nodes drop out."
    )
