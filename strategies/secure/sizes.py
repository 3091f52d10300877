"""How many nodes a round needs, and how many a group can have, as the job says."""

from __future__ import annotations

from math import ceil

from truststram.job import Job
from truststram.sections import RoundKeys

from .groups import group_count, largest, nodes_for

__all__ = ["largest_group", "least_nodes", "trained"]


def least_nodes(job: Job) -> int:
    """Return how many nodes must be connected before a round.

    This is ``round.min-nodes``. With a secure sum, where that is left at its default,
    it is the smallest number (and no less than the default) of which
    ``secure.min-cohort`` nodes reply (more for ``secure.colluders``):
    ``round.fraction`` of them are asked, a decryptor never trains, a round may end at
    ``round.quorum``, and groups must be enough for
    ``robust.f``. With fewer, rounds would begin and all of them fail.
    """
    keys, secure = job.round, job.secure
    if not secure.on or keys.min_nodes != RoundKeys().min_nodes:
        return keys.min_nodes
    replies = (secure.least - 1) // keys.quorum + 1
    found = ceil((replies + _decryptors(job)) / keys.fraction) - 2
    if secure.group_size:
        of_groups = nodes_for(secure.group_size, job.robust.f) + _decryptors(job)
        found = max(found, of_groups)
    found = max(found, keys.min_nodes)
    while ceil(keys.quorum * trained(job, found)) < secure.least:
        found += 1  # few steps: the rest of the divisions above, which are of floats
    return found


def trained(job: Job, nodes: int) -> int:
    """Return how many nodes train in a round while so many are connected."""
    return int(nodes * job.round.fraction) - _decryptors(job)


def largest_group(job: Job) -> int:
    """Return how many nodes the largest group of a job with groups can have.

    Whatever number of nodes is connected when it begins: at least
    :func:`least_nodes`.
    """
    size = job.secure.group_size
    nodes = max(least_nodes(job) - _decryptors(job), nodes_for(size, job.robust.f))
    return min(largest(size, group_count(nodes, size)), job.secure.max_cohort)


def _decryptors(job: Job) -> int:
    return job.secure.key_holder == "decryptor"
