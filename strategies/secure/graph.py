"""Who masks with whom, and how many shares give a secret.

Up to 100 clients, and always if some are assumed to collude: everyone with everyone
(Bonawitz et al., CCS 2017). More, under a semi-honest server: each with 20 neighbours
(Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS
2020, section 3), a ring in random order in which each is connected to the ten before it
and the ten behind it (a Harary graph). A client's secrets are shared among itself and
its neighbours, and so half of a neighbourhood opens what takes half of a complete
graph. For 101 to 1000 clients, of which a twentieth collude with the server and a fifth
drop out, :func:`failures` bounds the probability that they learn more than a sum by
1e-6; if a tenth drop out, the probability that the sum cannot be opened by 1e-3.

Who chooses the neighbours
--------------------------
The order is a hash of the keys that all clients of the round advertised before. A
server that follows the protocol has no influence on it. One that does not could leave
clients out until it likes the order, and a client that advertises last could try many
keys, so under a malicious server the graph is always complete.

Thresholds (h holders of a secret)
----------------------------------
``semi-honest``: ceil(h / 2), so that half may be gone. ``malicious``: floor(2 h / 3) +
1, so that two sets of that many holders have an honest one in common as long as less
than a third collude (Bonawitz et al., section 6.2): nobody gives both secrets of a
client.

Two cohorts, one model (malicious)
----------------------------------
A list of who is in a sum binds once a threshold of its cohort signed it, and an honest
client signs one list for a model. If a round is repeated with another cohort, two lists
can bind only if no honest client signed both; :func:`quorums_meet` says when that is
impossible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from math import comb

__all__ = [
    "COMPLETE",
    "MALICIOUS",
    "SEMI_HONEST",
    "colluders",
    "degree",
    "neighbours",
    "quorums_meet",
    "threshold",
]

SEMI_HONEST, MALICIOUS = "semi-honest", "malicious"
# Even: half of them on each side of the ring.
NEIGHBOURS = 20
# Most clients that mask everyone with everyone whatever is assumed.
COMPLETE = 100


def degree(clients: int, threat: str, assumed: int = 0) -> int:
    """Return the number of neighbours of each of ``clients``.

    Parameters
    ----------
    clients : int
    threat : str
    assumed : int
        Clients that are assumed to collude with the server.
    """
    everyone = threat == MALICIOUS or assumed > 0 or clients <= COMPLETE
    return clients - 1 if everyone else NEIGHBOURS


def threshold(holders: int, threat: str) -> int:
    """Return how many of the holders' shares give a secret."""
    return 2 * holders // 3 + 1 if threat == MALICIOUS else (holders + 1) // 2


def colluders(clients: int, threat: str) -> int:
    """Return how many clients of a complete graph may collude with the server.

    One more can learn the others' updates: under a semi-honest server by having enough
    shares, under a malicious one also by making honest clients disagree about who is
    left.
    """
    t = threshold(clients, threat)
    return 2 * t - clients - 1 if threat == MALICIOUS else t - 1


def quorums_meet(one: Collection[str], other: Collection[str]) -> bool:
    """Return whether thresholds of two cohorts always have an honest client in common.

    Under a malicious server, for as many colluders as :func:`colluders` allows in both
    cohorts: of the clients in either of them, t signed a list of the one and t' a list
    of the other, so at least t + t' - n signed both, and so many cannot all collude.
    It holds for two cohorts of which one has one client more, not for all that differ
    by two.
    """
    clients = len({*one, *other})
    both = sum(threshold(len(names), MALICIOUS) for names in (one, other)) - clients
    return both > min(colluders(len(names), MALICIOUS) for names in (one, other))


def neighbours(names: Sequence[str], seed: bytes, count: int) -> dict[str, list[str]]:
    """Return the neighbours of every client, sorted by name; the relation is symmetric.

    Parameters
    ----------
    names : sequence of str
        All different.
    seed : bytes
        What orders them, the same for everyone.
    count : int
        Neighbours of each: an even number, or all others.
    """
    if count >= len(names) - 1:
        return {name: sorted(set(names) - {name}) for name in names}
    ring = sorted(names, key=lambda n: hashlib.sha256(seed + n.encode()).digest())
    side, n = count // 2, len(ring)
    steps = [*range(-side, 0), *range(1, side + 1)]
    return {
        name: sorted(ring[(place + step) % n] for step in steps)
        for place, name in enumerate(ring)
    }


def failures(clients: int, gone: int, corrupted: int) -> tuple[float, float]:
    """Bound how likely the graph of a semi-honest round is unlucky.

    Parameters
    ----------
    clients, gone, corrupted : int
        Clients in the round, those that drop out, those that collude with the server;
        chosen independently of the graph.

    Returns
    -------
    unfinished, exposed : float
        Upper bounds of the probabilities that the sum cannot be unmasked, and that the
        colluders learn more than the sum of all honest clients that are left: by the
        shares of some client, or because the others fall apart into two parts.

    Notes
    -----
    Union bound over clients of exact hypergeometric tails (at most ``holders - t`` may
    be gone, at most ``t - 1`` of a client's neighbours may be corrupted), and over
    pairs of places for the ring: it falls apart only if ten in a row are gone or
    corrupted in two places.
    """
    k = degree(clients, SEMI_HONEST)
    t = threshold(k + 1, SEMI_HONEST)
    unfinished = clients * _at_least(k + 1 - t + 1, clients, gone, k + 1)
    exposed = clients * _at_least(t, clients - 1, corrupted, k)
    if k < clients - 1:
        bad = gone + corrupted
        exposed += comb(clients, 2) * (comb(bad, k) / comb(clients, k))
    return min(1.0, unfinished), min(1.0, exposed)


def _at_least(least: int, population: int, marked: int, drawn: int) -> float:
    """Return P[at least ``least`` marked] when drawing without replacement."""
    ways = sum(
        comb(marked, hit) * comb(population - marked, drawn - hit)
        for hit in range(least, min(marked, drawn) + 1)
    )
    return ways / comb(population, drawn)
