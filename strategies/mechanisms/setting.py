"""What a job's privacy settings resolve to: who is protected, trusted and drawn."""

from __future__ import annotations

from dataclasses import dataclass

from truststram.job import Job

from ..accounting.events import EVERYONE, Sampling

__all__ = ["Setting", "setting"]


@dataclass(frozen=True)
class Setting:
    """The resolved settings: no ``auto`` but that of the mechanism.

    Attributes
    ----------
    unit : {"client", "example"}
    trust : {"central", "local"}
    relation : {"add-remove", "replace"}
    sampling : Sampling
        Of the units into a release.
    """

    unit: str
    trust: str
    relation: str
    sampling: Sampling


def setting(job: Job, nodes: int) -> Setting:
    """Resolve ``auto`` in a job's privacy settings, for N registered nodes."""
    keys, rate = job.privacy, job.round.fraction
    trust = "central" if keys.central else "local"
    sampling = EVERYONE
    if keys.central and keys.sampling == "poisson" and rate < 1:
        sampling = Sampling("poisson", rate)
    if keys.central and keys.sampling == "fixed":
        size = max(1, round(rate * nodes))
        if size < nodes:
            sampling = Sampling("fixed", size / nodes, nodes)
    return Setting(keys.unit, trust, keys.neighbours, sampling)
