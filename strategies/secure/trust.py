"""Who must collude to break a secure sum, in one line: told before every run."""

from __future__ import annotations

from truststram.job import Job

from .graph import COMPLETE, MALICIOUS
from .keys import HE

__all__ = ["trust_line"]


def trust_line(job: Job) -> str:
    """Return what a job's secure sum protects against, in one line.

    For a job with a ``secure.scheme``.
    """
    return _of_sums(job) + (_of_changes(job) if job.secure.regroup else "")


def _of_changes(job: Job) -> str:
    """Return what sums over changing groups give away."""
    line = (
        " Groups change with the model (secure.regroup): from their sums the server "
        "can solve for single nodes' updates, as far as these resemble each other from "
        "round to round"
    )
    return line + (", within the privacy budget." if job.privacy.distributed else ".")


def _of_sums(job: Job) -> str:
    """Return who must collude to see less than a sum."""
    keys = job.secure
    least = f"The server sees sums of at least {keys.least} nodes"
    if keys.group_size:
        least += " (those of each group)"
    if keys.scheme not in HE:
        return least + _masked(job)
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


def _masked(job: Job) -> str:
    """Return the line's end for secure aggregation (:mod:`.secagg`, :mod:`.graph`)."""
    keys = job.secure
    if keys.threat == MALICIOUS:
        return (
            ", whatever it does, unless a third of a sum's nodes collude with it (it "
            "may compare sums of different models and nodes); sums are exact as long "
            "as less than a third of their nodes drop out."
        )
    line = (
        ", if it follows the protocol, unless half of a sum's nodes collude with it; "
        "sums are exact as long as no more than half of their nodes drop out."
    )
    if keys.max_cohort > COMPLETE and not keys.colluders:
        line += (
            f" Of more than {COMPLETE} nodes each shares its secrets with 20: there a "
            "twentieth may collude while a fifth drop out (chance of exposure below "
            "1e-6), and a tenth may drop out (chance of no sum below 1e-3); "
            "secure.colluders above 0 has everyone share with everyone."
        )
    return line
