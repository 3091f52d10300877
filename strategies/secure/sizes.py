"""How many nodes a round needs, and how many a group can have, as the job says."""

from __future__ import annotations

from math import ceil

from truststram.job import Job
from truststram.sections import RoundKeys

__all__ = [
    "LEAST",
    "group_count",
    "largest",
    "largest_group",
    "least_nodes",
    "nodes_for",
    "nodes_of",
    "objection",
    "trained",
]

# A sum of two tells either of them the other's part.
LEAST = 3


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


def nodes_of(job: Job, members: int) -> int:
    """Return how many nodes are connected where so many are in groups."""
    return members + _decryptors(job)


def largest_group(job: Job) -> int:
    """Return how many nodes the largest group of a job with groups can have.

    Whatever number of nodes is connected when it begins: at least
    :func:`least_nodes`. With ``round.min-nodes`` as it is by default, and an f of 0 or
    automatic, that may be one group, so the bound is 2 g - 1; with a larger
    ``round.min-nodes`` it comes down to g + 1.
    """
    size = job.secure.group_size
    nodes = max(least_nodes(job) - _decryptors(job), nodes_for(size, job.robust.f))
    return min(largest(size, group_count(nodes, size)), job.secure.max_cohort)


def group_count(clients: int, size: int) -> int:
    """Return how many groups of at least ``size`` there are among ``clients``."""
    return clients // size


def largest(size: int, count: int) -> int:
    """Return the largest group there can be where there are at least ``count``.

    K nodes make ``K // size`` groups, so less than ``size`` nodes are left over and
    spread over them.
    """
    return size + -(-(size - 1) // count)


def nodes_for(size: int, f: int) -> int:
    """Return the smallest K that :func:`objection` has nothing against."""
    return size * (2 * max(f, 0) + 1)


def objection(clients: int, size: int, f: int) -> str | None:
    """Return why groups cannot outvote f malicious ones, or None if they can.

    Parameters
    ----------
    clients : int
        K, registered nodes.
    size : int
        g.
    f : int
        Groups that malicious clients spoil: at most as many as there are such clients,
        and that many if each sits in another group. Below 0: automatic, for which the
        rule takes what the groups allow.
    """
    count, assumed = group_count(clients, size), max(f, 0)
    if count > 2 * assumed:
        return None
    return (
        f"{clients} nodes make {count} groups of {size}, and {assumed} malicious ones "
        f"need more than {2 * assumed}: f / K must be below 1 / {2 * size}"
    )


def _decryptors(job: Job) -> int:
    return job.secure.key_holder == "decryptor"
