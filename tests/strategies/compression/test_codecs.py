"""Every codec: an update comes back, within its error, its size and its promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.compression import rice, values
from strategies.compression.codecs import CODECS, make_codec
from strategies.compression.selection import Selection, count, largest
from strategies.compression.wire import max_frame_bytes
from tests.strategies.compression.updates import (
    EDGES,
    LARGEST,
    MODEL,
    RATIOS,
    TINIEST,
    all_codecs,
    both_ways,
    clustered,
    finite,
    frame_of,
    heavy,
    selection_for,
)
from truststram.errors import ProtocolError

NAMES = list(CODECS)
# Chance that a statistical test here rejects a right codec.
LEVEL = 1e-9


def squares(x):
    return float((x.astype(np.float64) ** 2).sum())


def check(codec, x):
    """Assert what every codec owes every update; return what is decoded."""
    before = x.copy()
    payload, y = both_ways(codec, x)
    assert np.array_equal(x, before)
    assert y.dtype == np.float32
    assert y.shape == x.shape
    assert y.flags.writeable
    assert np.isfinite(y).all()
    assert len(payload) <= codec.max_payload(len(x)) <= codec.largest_payload(len(x))
    if codec.fixed_size:
        assert len(payload) == codec.predicted_payload(len(x))
    BOUNDS[codec.name](codec, x.astype(np.float64), y.astype(np.float64))
    return y


def q8_bound(codec, x, y):
    scales = values.block_scales(x.astype(np.float32)).astype(np.float64)
    step = np.repeat(scales, values.BLOCK)[: len(x)] / values.LEVELS
    # Of float32: rounding of the quotient, and of the product.
    assert np.all(np.abs(x - y) <= step * (1 + 1e-4) + 2 * TINIEST)


def sparse_bound(codec, x, y, near):
    """Assert that all is 0 but the largest, and these within ``near(values)``."""
    sent = largest(x.astype(np.float32), count(codec.ratio, len(x)))
    rest = np.ones(len(x), bool)
    rest[sent] = False
    assert not y[rest].any()
    assert np.all(np.abs(x - y)[sent] <= near(x[sent]) + TINIEST)


def topk_bound(codec, x, y):
    top = np.abs(x).max(initial=0)
    sparse_bound(codec, x, y, lambda v: 2.0**-11 * np.abs(v) + 2.0**-38 * top)


def topk_q8_bound(codec, x, y):
    def near(v):
        scales = values.block_scales(v.astype(np.float32)).astype(np.float64)
        scales = np.maximum(scales, np.abs(v).min(initial=LARGEST) * 127 / 2)
        return np.repeat(scales, values.BLOCK)[: len(v)] / 254 * (1 + 1e-4)

    sparse_bound(codec, x, y, near)


def public_bound(codec, x, y):
    shared = selection_for(codec, len(x))
    expected = np.zeros(len(x))
    expected[shared.indices] = x[shared.indices]
    assert np.array_equal(y, expected)


def eden_bound(codec, x, y):
    # <x, y> = |x|^2 is what the scale is made for; it holds for every rotation, but
    # for float32 and, per block, for scales beyond it.
    square = float(np.linalg.norm(x / max(np.abs(x).max(initial=0), TINIEST)))
    if 1e-30 < np.abs(x).max(initial=0) < 1e30:
        assert float(x @ y) == pytest.approx(float(x @ x), rel=1e-3)
    assert np.linalg.norm(y) <= 4 * max(square, 1) * max(
        np.abs(x).max(initial=0), 1e-40
    )


BOUNDS = {
    "q8": q8_bound,
    "topk": topk_bound,
    "topk-q8": topk_q8_bound,
    "topk-shared": public_bound,
    "randk": public_bound,
    "eden-1": eden_bound,
    "eden-2": eden_bound,
}


@pytest.mark.parametrize("name", NAMES)
@given(x=finite, ratio=st.sampled_from(RATIOS))
def test_any_update_comes_back_within_the_codec_s_error(name, x, ratio):
    check(make_codec(name, ratio), x)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", NAMES)
def test_edges_come_back(name, edge):
    for ratio in RATIOS:
        check(make_codec(name, ratio), EDGES[edge])


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros(name):
    assert not check(make_codec(name, 0.1), EDGES["zeros"]).any()


@pytest.mark.parametrize("name", ["q8", "topk", "topk-q8"])
@given(x=finite)
def test_no_value_changes_its_sign(name, x):
    _, y = both_ways(make_codec(name, 1.0), x)
    assert np.all((np.sign(y) == np.sign(x)) | (y == 0))
    _, minus = both_ways(make_codec(name, 1.0), -x)
    if name != "q8":  # rounded by chance
        assert np.array_equal(minus, -y)


def test_rounding_by_chance_is_as_likely_up_as_minus_it_is_down():
    """The codes of x and minus those of -x have one distribution (3 M draws each)."""
    x = np.tile(np.linspace(-1, 1, 4096, dtype=np.float32), 700)
    rng = np.random.default_rng(1)
    scales = values.block_scales(x)
    ups = values.stochastic_codes(x, scales, rng).reshape(700, -1).mean(0)
    downs = values.stochastic_codes(-x, scales, rng).reshape(700, -1).mean(0)
    # Hoeffding: a mean of 700 with a range of 1 is off by t with 2 exp(-1400 t^2).
    bound = math.sqrt(math.log(4 * 4096 / LEVEL) / 1400)
    exact = 127.0 * x[:4096].astype(np.float64)
    assert np.abs(ups - exact).max() < bound
    assert np.abs(-downs - exact).max() < bound
    # Over all: the deviation of one mean is at most half a step.
    slack = 0.5 * 6.2 / math.sqrt(len(x))
    assert abs((ups - exact).mean()) < slack
    # The wrong way, always down, is rejected.
    assert abs((np.floor(exact) - exact).mean()) > slack


def mean_of_decoded(codec, x, draws, seed=1):
    """Return the mean of <decoded - x, direction> and its standard error."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(len(x))
    direction /= np.linalg.norm(direction)
    direction += x / np.linalg.norm(x)
    found = [
        float(codec.decode(codec.encode(x, rng), len(x)) @ direction)
        for _ in range(draws)
    ]
    error = np.std(found) / math.sqrt(draws)
    return np.mean(found) - float(x @ direction), error


@pytest.mark.parametrize("name", [n for n in NAMES if CODECS[n].unbiased])
@pytest.mark.parametrize("x", [heavy(4097), heavy(300) ** 3, EDGES["one spike"] + 1])
def test_unbiased_codecs_are(name, x):
    """6.2 standard errors of 200 draws: a right codec fails once in 10^9."""
    off, error = mean_of_decoded(make_codec(name, 0.1), x, 200)
    assert abs(off) < 6.2 * error + 1e-5 * np.linalg.norm(x)


def test_the_test_of_bias_finds_one():
    x = np.abs(heavy(300)) + 1

    class Shorter(CODECS["eden-1"]):
        def _decode(self, data, d, shared):
            return super()._decode(data, d, shared) * np.float32(0.9)

    off, error = mean_of_decoded(Shorter(), x, 200)
    assert abs(off) > 6.2 * error


@pytest.mark.parametrize("name", [n for n in NAMES if CODECS[n].linear])
def test_the_sum_of_linear_encodings_is_the_encoding_of_the_sum(name):
    codec = make_codec(name, 0.1)
    parts = [np.round(heavy(1000, seed) * 8) / 8 for seed in range(5)]  # exact sums
    decoded = sum(both_ways(codec, x.astype(np.float32))[1] for x in parts)
    _, of_sum = both_ways(codec, sum(parts).astype(np.float32))
    assert np.array_equal(decoded, of_sum)


def test_other_codecs_are_not_linear():
    x, y = heavy(1000), heavy(1000, seed=2)
    for codec in all_codecs():
        if not codec.linear:
            total = both_ways(codec, x)[1] + both_ways(codec, y)[1]
            assert not np.allclose(total, both_ways(codec, x + y)[1], rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [0, 1, 4096, 100_003])
def test_fixed_sizes_are_exact_and_others_are_bounded(name, d):
    codec = make_codec(name, 0.1)
    frame, _ = frame_of(codec, heavy(d))
    assert len(frame) <= max_frame_bytes(codec, d)
    if codec.fixed_size:
        assert len(frame) == codec.predicted_bytes(d) == max_frame_bytes(codec, d)


def with_error_feedback(codec, d, rounds=8):
    """Return the last frame of a client whose rows move at speeds of their own."""
    rng = np.random.default_rng(1)
    speed = np.repeat(rng.lognormal(0, 0.3, -(-d // 300)), 300)[:d]
    residual = np.zeros(d, np.float32)
    for _ in range(rounds):
        x = residual + (rng.standard_normal(d) * speed).astype(np.float32)
        payload, y = both_ways(codec, x)
        residual = x - y
    return payload


@pytest.mark.parametrize("name", ["topk", "topk-q8"])
@pytest.mark.parametrize("ratio", [0.1, 0.5])
@pytest.mark.parametrize("d", [20_490, 200_000])
def test_sizes_of_entropy_coded_payloads_are_predicted_to_10_percent(name, ratio, d):
    """As error feedback makes updates; those of CNNs: `benchmarks.codecs`."""
    codec = make_codec(name, ratio)
    for payload in (
        with_error_feedback(codec, d),
        both_ways(codec, np.random.default_rng(2).standard_normal(d).astype("f4"))[0],
    ):
        assert len(payload) == pytest.approx(codec.predicted_payload(d), rel=0.1)


@given(st.integers(0, 10**6), st.floats(1e-6, 1), st.sampled_from(["topk", "topk-q8"]))
def test_no_ratio_needs_more_than_the_largest_payload(d, ratio, name):
    codec = make_codec(name, ratio)
    assert codec.max_payload(d) <= codec.largest_payload(d) < 4 * d + 200


def incompressible(d, places):
    """Return an update of uniform codes at ``places``: nothing for zstd to find."""
    rng = np.random.default_rng(1)
    x = np.zeros(d, np.float32)
    codes = rng.integers(2, 128, len(places)) * rng.choice([-1, 1], len(places))
    codes[:: values.BLOCK] = 127
    codes[1] = 2
    x[places] = codes
    return x


@pytest.mark.parametrize("arranged", [False, True])
def test_ten_percent_with_8_bits_is_25_times_smaller_whatever_is_sent(arranged):
    d = 500_000
    k = d // 10
    places = np.sort(np.random.default_rng(1).permutation(d)[:k])
    if arranged:  # gaps of 8 and 16, as random as can be: most bits for Rice's b = 3
        gaps = np.random.default_rng(1).choice([0, 8, 16], k, p=[0.2, 0.475, 0.325])
        places = np.cumsum(gaps + 1) - 1
        places = places[places < d]
    x = incompressible(d, places)
    codec = make_codec("topk-q8", 0.1)
    frame, _ = frame_of(codec, x)
    assert len(frame) <= max_frame_bytes(codec, d) <= 4 * d / 25
    if not arranged:  # zstd shortens neither places nor values, so it is close
        assert len(frame) > 0.99 * 4 * d / 25
    _, y = both_ways(codec, x)
    assert np.count_nonzero(y) > 0.96 * len(places)
    assert codec._surely(d, codec.max_payload(d)) > 0.96 * k


def test_where_places_take_too_much_the_smallest_values_go(monkeypatch):
    """As if an arrangement took more than the bound, which zstd mostly prevents."""
    x = heavy(50_000)
    codec = make_codec("topk-q8", 0.1)
    most = 4500
    monkeypatch.setattr(type(codec), "max_payload", lambda self, d: most)
    payload = codec.encode(x, np.random.default_rng(0))
    assert len(payload) <= most
    indices, _ = rice.decode(memoryview(payload), len(x))
    assert np.array_equal(indices, largest(x, len(indices)))
    assert 0 < len(indices) < 5000


def test_real_clusters_are_smaller():
    frame, _ = frame_of(make_codec("topk-q8", 0.1), clustered(200_000))
    assert 200_000 * 4 / len(frame) > 40


@pytest.mark.parametrize("name", NAMES)
def test_predicted_errors(name):
    codec = make_codec(name, 0.1)
    x = heavy(50_000)
    error = codec.predicted_error(len(x))
    if error is None:
        assert name in {"topk", "topk-q8", "topk-shared"}
        return
    found = [squares(x - both_ways(codec, x, seed)[1]) / squares(x) for seed in (1, 2)]
    if name == "q8":
        assert np.mean(found) < error
    elif name == "randk":
        seeds = range(40)
        found = [
            1 - squares(Selection.random(s, 5000, len(x)).gather(x)) / squares(x)
            for s in seeds
        ]
        assert np.mean(found) == pytest.approx(error, rel=0.02)
    else:
        assert np.mean(found) == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_updates_are_refused(name, bad):
    x = heavy(5000)
    x[4321] = bad
    with pytest.raises(ValueError, match="finite"):
        both_ways(make_codec(name, 0.1), x)


@pytest.mark.parametrize("name", NAMES)
def test_other_arrays_are_refused(name):
    codec = make_codec(name, 0.1)
    for wrong in (np.zeros(10), np.zeros((2, 5), np.float32)):
        with pytest.raises(ValueError, match="float32 of shape"):
            codec.encode(wrong, np.random.default_rng(0), selection_for(codec, 10))


@pytest.mark.parametrize("name", NAMES)
def test_strides_and_read_only_memory_do_not_matter(name):
    codec = make_codec(name, 0.1)
    x = heavy(10_000)[::2]
    shared = selection_for(codec, 5000)
    fixed = x.copy()
    fixed.flags.writeable = False
    one, two = (codec.encode(v, np.random.default_rng(0), shared) for v in (x, fixed))
    assert one == two


@pytest.mark.parametrize("name", ["topk-shared", "randk"])
def test_a_public_selection_is_needed(name):
    codec = make_codec(name, 0.1)
    for wrong in (None, Selection.random(1, 10, 99)):
        with pytest.raises(ValueError, match="selection of 100"):
            codec.encode(heavy(100), np.random.default_rng(0), wrong)
        with pytest.raises(ValueError, match="selection of 100"):
            codec.decode(b"", 100, wrong)


def test_values_of_another_selection_are_refused():
    codec = make_codec("randk", 0.1)
    payload, _ = both_ways(codec, heavy(100))
    with pytest.raises(ProtocolError, match="selection"):
        codec.decode(payload, 100, Selection.random(4, 10, 100))


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.1, math.nan])
def test_other_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match="0 < ratio"):
        make_codec("topk", ratio)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="Expected codec='zip' of: q8, topk"):
        make_codec("zip", 0.1)


def test_the_same_seed_gives_the_same_bytes():
    x = heavy(5000)
    for codec in all_codecs():
        assert both_ways(codec, x, seed=5)[0] == both_ways(codec, x, seed=5)[0]
    for name in ("q8", "eden-1"):
        codec = make_codec(name, 0.1)
        assert both_ways(codec, x, seed=5)[0] != both_ways(codec, x, seed=6)[0]


def test_frames_name_their_model():
    assert MODEL in frame_of(make_codec("q8", 1.0), heavy(10))[0]
