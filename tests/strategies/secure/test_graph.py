"""Neighbours are mutual and nobody's choice; thresholds are what the proofs need."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strategies.secure.graph import (
    COMPLETE,
    MALICIOUS,
    NEIGHBOURS,
    SEMI_HONEST,
    colluders,
    degree,
    failures,
    neighbours,
    quorums_meet,
    threshold,
)

SIZES = st.integers(3, 80)
MANY = 20  # above it, the ring, in tests that are about the ring


def names(n):
    return [f"node-{i}" for i in range(n)]


def graph(n, seed=b"seed", threat=SEMI_HONEST):
    return neighbours(names(n), seed, degree(n, threat))


@pytest.fixture
def _early(monkeypatch):
    """Make a ring of fewer clients, so that tests of it are quick."""
    monkeypatch.setattr("strategies.secure.graph.COMPLETE", MANY)


def connected(edges, among):
    """Return whether ``among`` hang together."""
    found, waiting = set(), [next(iter(among))]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in edges[name] if other in among]
    return found == set(among)


@pytest.mark.usefixtures("_early")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIZES, st.binary(max_size=32))
def test_neighbours_are_mutual_equally_many_and_hang_together(n, seed):
    edges = graph(n, seed)
    assert connected(edges, set(edges))
    for name, others in edges.items():
        assert others == sorted(set(others) - {name})
        assert len(others) == (NEIGHBOURS if n > MANY else n - 1)
        assert all(name in edges[other] for other in others)


@pytest.mark.parametrize(("n", "threat"), [(COMPLETE, SEMI_HONEST), (160, MALICIOUS)])
def test_everyone_with_everyone(n, threat):
    assert all(len(others) == n - 1 for others in graph(n, threat=threat).values())


def test_more_than_a_hundred_have_twenty_neighbours_if_nobody_is_assumed_to_collude():
    assert degree(COMPLETE, SEMI_HONEST) == COMPLETE - 1
    assert degree(COMPLETE + 1, SEMI_HONEST) == NEIGHBOURS == 20
    assert degree(COMPLETE + 1, SEMI_HONEST, 1) == COMPLETE
    assert degree(COMPLETE + 1, MALICIOUS) == COMPLETE


@pytest.mark.usefixtures("_early")
def test_the_order_follows_the_seed_and_not_the_list():
    assert graph(50, b"1") == graph(50, b"1")
    assert graph(50, b"1") != graph(50, b"2")
    assert neighbours(names(50)[::-1], b"1", 20) == graph(50, b"1")


@pytest.mark.usefixtures("_early")
def test_every_pair_is_as_likely():
    # 2000 graphs, each edge with chance 20 / 29: six deviations are 0.062.
    hits = sum("node-1" in graph(30, str(i).encode())["node-0"] for i in range(2000))
    assert abs(hits / 2000 - 20 / 29) < 0.062


@given(st.integers(3, 1000))
def test_thresholds_leave_room_for_the_dropouts_that_are_promised(n):
    assert n - threshold(n, SEMI_HONEST) == n // 2
    gone = n - threshold(n, MALICIOUS)
    assert gone < n / 3 <= gone + 1


@given(st.integers(3, 1000))
def test_what_colluders_cannot_do(n):
    # Semi-honest: they have too few shares.
    assert colluders(n, SEMI_HONEST) == threshold(n, SEMI_HONEST) - 1
    # Malicious: of two sets of signers one honest client is in both, or they are too
    # few; and one more colluder could have two sets.
    t, c = threshold(n, MALICIOUS), colluders(n, MALICIOUS)
    assert c < t
    assert 2 * (t - c) > n - c
    assert 2 * (t - (c + 1)) <= n - (c + 1)
    assert c >= (n - 1) // 3


def test_the_bounds_hold_in_random_graphs(monkeypatch):
    """1000 graphs of 40 clients with 6 neighbours, where bad luck is frequent."""
    monkeypatch.setattr("strategies.secure.graph.NEIGHBOURS", 6)
    monkeypatch.setattr("strategies.secure.graph.COMPLETE", 7)
    n, gone, corrupted, trials = 40, 6, 6, 1000
    t = threshold(7, SEMI_HONEST)
    rng, unfinished, exposed = random.Random(1), 0, 0
    for trial in range(trials):
        edges = graph(n, str(trial).encode())
        order = names(n)
        rng.shuffle(order)
        lost, bad = set(order[:gone]), set(order[gone : gone + corrupted])
        honest = set(order[gone + corrupted :])
        unfinished += any(len(lost & {x, *edges[x]}) > 7 - t for x in order)
        few = any(len(bad.intersection(edges[x])) >= t for x in set(order) - bad)
        exposed += few or not connected(edges, honest)
    bounds = failures(n, gone, corrupted)
    assert 0.05 < unfinished / trials <= bounds[0] < 0.5
    assert 0.05 < exposed / trials <= bounds[1] < 0.5


@pytest.mark.parametrize("n", [5, 21, COMPLETE])
def test_a_complete_graph_has_no_bad_luck(n):
    assert failures(n, n // 2, threshold(n, SEMI_HONEST) - 1) == (0.0, 0.0)


def test_what_many_clients_can_bear_is_what_is_said():
    """A twentieth collude and a fifth drop out; a tenth drop out and it is opened."""
    for n in range(COMPLETE + 1, 1001):
        assert failures(n, n // 5, n // 20)[1] < 1e-6
        assert failures(n, n // 10, 0)[0] < 1e-3


def test_nearly_half_of_many_are_too_many_for_neighbourhoods():
    """So they have everyone as a neighbour, if so many are assumed to collude."""
    assert failures(200, 0, 90)[1] == 1.0
    assert colluders(200, SEMI_HONEST) >= 90
    assert degree(200, SEMI_HONEST, 90) == 199


def test_quorums_meet_if_one_client_is_missing():
    for n in range(4, 60):
        assert quorums_meet(names(n), names(n))
        assert quorums_meet(names(n), names(n - 1))
        assert quorums_meet(names(n - 1), names(n))


@pytest.mark.parametrize(("n", "other"), [(6, 5), (7, 6), (7, 5), (7, 7), (6, 4)])
def test_quorums_meet_in_an_honest_client_in_every_case(n, other):
    """All signers of two cohorts of few clients, and the most that may collude."""
    start = 1 if other == n else 0  # cohorts of which neither holds the other, too
    one, two = set(range(n)), set(range(start, start + other))
    c = min(colluders(n, MALICIOUS), colluders(other, MALICIOUS))
    fewest = min(
        len({*first} & {*second})
        for first in combinations(sorted(one), threshold(n, MALICIOUS))
        for second in combinations(sorted(two), threshold(other, MALICIOUS))
    )
    met = quorums_meet([str(i) for i in one], [str(i) for i in two])
    assert met == (fewest > c)
