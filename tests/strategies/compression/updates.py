"""Updates, selections and frames for the tests of this folder."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategies.compression import wire
from strategies.compression.codecs import CODECS, make_codec
from strategies.compression.selection import Selection, count

MODEL = bytes(range(16))
LARGEST = float(np.finfo(np.float32).max)
TINIEST = float(np.finfo(np.float32).smallest_subnormal)
RATIOS = (0.001, 0.1, 0.5, 1.0)

finite = hnp.arrays(
    np.float32,
    st.integers(0, 300),
    elements=st.floats(
        -LARGEST, LARGEST, width=32, allow_nan=False, allow_infinity=False
    ),
)


def _with(n, **values):
    x = np.zeros(n, np.float32)
    for place, value in values.items():
        x[int(place[1:])] = value
    return x


def heavy(d, seed=1):
    """Return d values with Student's t distribution, 4 degrees of freedom."""
    return np.random.default_rng(seed).standard_t(4, d).astype(np.float32)


def clustered(d, seed=1):
    """Return values of which whole rows are larger, as in layers with dead units."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.random(-(-d // 100)) < 0.2, 100)[:d]
    return (heavy(d, seed) * np.where(rows, 1, 0.01)).astype(np.float32)


# Name -> update: shapes and values at the edges.
EDGES = {
    "empty": np.empty(0, np.float32),
    "one value": np.array([-2.5], np.float32),
    "one zero": np.zeros(1, np.float32),
    "zeros": np.zeros(5000, np.float32),
    "one spike": _with(5000, _77=-3.0),
    "subnormal": np.linspace(-40, 40, 81, dtype=np.float32) * np.float32(TINIEST),
    "tiniest": np.full(4097, TINIEST, np.float32),
    "largest": np.full(300, LARGEST, np.float32) * np.sign(heavy(300)),
    "large and small": _with(9000, _0=LARGEST, _5=1.0, _6=-TINIEST, _8999=-LARGEST),
    "equal": np.full(4096, 0.5, np.float32),
    "a block and one": heavy(4097),
    "heavy": heavy(20_001),
    "clustered": clustered(20_001),
}


def selection_for(codec, d, seed=3):
    """Return a selection as the codec needs it, or None."""
    if not codec.public:
        return None
    return Selection.random(seed, count(codec.ratio, d), d)


def both_ways(codec, x, seed=0):
    """Return (payload, what it is decoded to)."""
    shared = selection_for(codec, len(x))
    payload = codec.encode(x, np.random.default_rng(seed), shared)
    return payload, codec.decode(payload, len(x), shared)


def frame_of(codec, x, seed=0):
    """Return a frame and what `wire.unpack` needs for it."""
    shared = selection_for(codec, len(x))
    rng = np.random.default_rng(seed)
    frame = wire.pack(codec, x, spec_hash=MODEL, rng=rng, shared=shared)
    return frame, {
        "d": len(x),
        "spec_hash": MODEL,
        "allowed": list(CODECS),
        "shared": shared or Selection.random(3, count(0.1, len(x)), len(x)),
    }


def all_codecs(ratio=0.1):
    """Return every codec."""
    return [make_codec(name, ratio) for name in CODECS]
