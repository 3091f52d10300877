"""Neighbours are mutual and nobody's choice; thresholds are what the proofs need."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.graph import (
    MALICIOUS,
    NEIGHBOURS,
    SEMI_HONEST,
    colluders,
    degree,
    failures,
    neighbours,
    threshold,
)

SIZES = st.integers(3, 80)


def names(n):
    return [f"node-{i}" for i in range(n)]


def graph(n, seed=b"seed", threat=SEMI_HONEST):
    return neighbours(names(n), seed, degree(n, threat))


def connected(edges, among):
    """Return whether ``among`` hang together."""
    found, waiting = set(), [next(iter(among))]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in edges[name] if other in among]
    return found == set(among)


@given(SIZES, st.binary(max_size=32))
def test_neighbours_are_mutual_equally_many_and_hang_together(n, seed):
    edges = graph(n, seed)
    assert connected(edges, set(edges))
    for name, others in edges.items():
        assert others == sorted(set(others) - {name})
        assert len(others) == min(n - 1, NEIGHBOURS)
        assert all(name in edges[other] for other in others)


@pytest.mark.parametrize(("n", "threat"), [(21, SEMI_HONEST), (60, MALICIOUS)])
def test_everyone_with_everyone(n, threat):
    assert all(len(others) == n - 1 for others in graph(n, threat=threat).values())


def test_the_order_follows_the_seed_and_not_the_list():
    assert graph(50, b"1") == graph(50, b"1")
    assert graph(50, b"1") != graph(50, b"2")
    assert neighbours(names(50)[::-1], b"1", 20) == graph(50, b"1")


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


@pytest.mark.parametrize("n", [5, 21])
def test_a_complete_graph_has_no_bad_luck(n):
    assert failures(n, n // 2, threshold(n, SEMI_HONEST) - 1) == (0.0, 0.0)


def test_what_a_hundred_clients_can_bear():
    unfinished, exposed = failures(100, 10, 20)
    assert unfinished < 1e-5
    assert exposed < 1e-2
    assert failures(100, 60, 60) == (1.0, 1.0)
