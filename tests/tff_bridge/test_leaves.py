"""A plan's leaves as an update and back: TFF's own sums, whatever the silos have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.mean.core import weighted_mean
from tests.tff_bridge.numpy_plan import leaf, plan_of
from tff_bridge.training import Training
from truststram.errors import ConfigError

COUNT = leaf((3,), "int64", role="aggregator")
LAYOUT = Training.of(plan_of(more=[COUNT])).layout


def silo(rng, examples: int):
    """The leaves of one silo's ``work``; its data counted twice (two epochs)."""
    weight = 2 * examples
    update = [rng.normal(size=s).astype("f4") for s in ((3, 6), (3,))]
    return [
        np.float32(rng.normal() * weight),
        np.int64(weight),
        *(x * np.float32(weight) for x in update),
        np.float32(weight),
        rng.integers(0, 100, 3),
    ]


def arrays(leaves):
    return [np.asarray(x) for x in leaves]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.integers(0, 2**31))
def test_the_weighted_mean_of_replies_restores_tffs_sums(examples, seed):
    rng = np.random.default_rng(seed)
    silos = [arrays(silo(rng, n)) for n in examples]
    replies = [LAYOUT.reply(leaves) for leaves in silos]
    assert [reply.examples for reply in replies] == examples
    weights, mean = np.array(examples, float), np.empty(LAYOUT.size, np.float32)
    weighted_mean([r.delta for r in replies], weights, mean)
    metrics = {
        key: np.average([r.metrics[key] for r in replies], weights=weights)
        for key in replies[0].metrics
    }
    found = LAYOUT.sums_of(mean, sum(examples), metrics)
    for leaf_, sums, terms in zip(
        LAYOUT.leaves, found, zip(*silos, strict=True), strict=True
    ):
        assert (str(sums.dtype), sums.shape) == leaf_.kind
        expected = np.sum(np.array(terms, np.float64), axis=0)
        scale = np.abs(np.array(terms, np.float64)).sum(axis=0) + 1
        if sums.dtype.kind == "i":
            np.testing.assert_array_equal(sums, expected)  # counts are exact
        else:
            assert (np.abs(sums - expected) <= 1e-6 * scale).all()


def test_an_update_is_what_the_model_moved_by():
    back = [np.full(s, 0.25, np.float32) for s in ((3, 6), (3,))]
    leaves = [1.0, 40, *(x * 40 for x in back), np.float32(40), np.zeros(3, np.int64)]
    reply = LAYOUT.reply(arrays(leaves))  # TFF sends gradients: the other direction
    np.testing.assert_array_equal(reply.delta, np.full(21, -0.25, np.float32))
    assert reply.examples == 20
    assert reply.metrics["tff-0"] == pytest.approx(1 / 40)
    assert set(reply.metrics) == {"tff-0", "tff-1", "tff-5-0", "tff-5-1", "tff-5-2"}


@pytest.mark.parametrize("weight", [0.0, np.nan, np.inf, -4.0, 3.0])
def test_a_weight_that_is_no_number_of_examples_is_an_error(weight):
    leaves = arrays(silo(np.random.default_rng(1), 10))
    leaves[4] = np.float32(weight)
    with pytest.raises(ConfigError, match="no number of examples: it diverged"):
        LAYOUT.reply(leaves)


def test_sums_that_were_withheld_are_zero_and_known_to_be():
    delta = np.ones(LAYOUT.size, np.float32)
    sums = LAYOUT.sums_of(delta, 4.0, {"num-examples": 4.0})
    assert LAYOUT.withheld({"num-examples": 4.0})
    assert not LAYOUT.withheld(
        LAYOUT.reply(arrays(silo(np.random.default_rng(1), 2))).metrics
    )
    assert (sums[0], sums[1], sums[4]) == (0, 0, 8)
    np.testing.assert_array_equal(sums[2], np.full((3, 6), -8, np.float32))
    np.testing.assert_array_equal(sums[5], np.zeros(3))


@pytest.mark.parametrize(
    ("spec", "counted"),
    [({"train.local-epochs": 5}, 5), ({"tff.weighting": "uniform"}, 1)],
)
def test_how_often_an_example_counts_is_the_plans(spec, counted):
    assert Training.of(plan_of(spec)).layout.counted == counted
