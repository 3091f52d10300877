"""Public coordinates: the same for all, a function of the server's models only."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.compression.shared import Selector

D = 300


def models(rounds, seed=1, step=None):
    rng = np.random.default_rng(seed)
    x = np.zeros(D)
    for _ in range(rounds):
        yield x.astype(np.float32)
        x = x + (rng.normal(size=D) if step is None else step)


@pytest.mark.parametrize("by_size", [False, True])
def test_the_same_models_and_seed_give_the_same_places(by_size):
    runs = [
        [
            selector.select(i, x).indices.tolist()
            for i, x in enumerate(models(5), start=1)
        ]
        for selector in (Selector(0.1, by_size, s) for s in (7, 7, 8))
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert {len(places) for places in runs[0]} == {30}
    assert runs[0][0] != runs[0][1]


@pytest.mark.parametrize("by_size", [False, True])
def test_every_coordinate_has_its_turn(by_size):
    """Though the model moves in a few places only."""
    step = np.zeros(D)
    step[:20] = 1.0
    selector, seen = Selector(0.2, by_size, 1), np.zeros(D, int)
    for i, x in enumerate(models(80, step=step), start=1):
        seen[selector.select(i, x).indices] += 1
    assert seen.min() >= 1


def test_half_of_the_places_are_where_the_model_moved():
    step = np.zeros(D)
    step[5:20] = 1.0
    selector = Selector(0.1, True, 1)
    for i, x in enumerate(models(6, step=step), start=1):
        places = selector.select(i, x).indices
        if i > 1:
            assert set(range(5, 20)) <= set(places)


def test_what_moved_is_remembered_while_it_is_not_sent():
    selector = Selector(0.1, True, 1)
    x = np.zeros(D, np.float32)
    selector.select(1, x)
    x[3] = 5.0
    assert 3 in selector.select(2, x).indices
    for i in range(3, 6):
        x[100:110] += 0.1
        assert 3 in selector.select(i, x).indices


def test_a_restart_changes_nothing():
    selector, again = Selector(0.1, True, 1), Selector(0.1, True, 1)
    found = list(models(6))
    for i, x in enumerate(found[:3], start=1):
        selector.select(i, x)
    again.load_state(selector.state())
    for i, x in enumerate(found[3:], start=4):
        expected = selector.select(i, x).indices
        np.testing.assert_array_equal(again.select(i, x).indices, expected)


@pytest.mark.parametrize("ratio", [1.0, 1e-9])
def test_all_and_one(ratio):
    selector = Selector(ratio, True, 1)
    for i, x in enumerate(models(3), start=1):
        assert selector.select(i, x).k == (D if ratio == 1 else 1)
