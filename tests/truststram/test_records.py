"""The flat vector: exact, without copies, and safe against any bytes."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from truststram.errors import ProtocolError
from truststram.records import (
    Spec,
    content_bytes,
    flatten,
    pack,
    record_bytes,
    unflatten,
    view,
)

SHAPE = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
FLOATS = hnp.arrays(np.float32, SHAPE, elements=st.floats(-1e3, 1e3, width=32))


@given(hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64, np.uint8]), SHAPE))
def test_pack_writes_the_bytes_that_flower_writes(values):
    ours, theirs = pack(values), Array(values)
    assert (ours.dtype, ours.shape, ours.stype) == (
        theirs.dtype,
        theirs.shape,
        "numpy.ndarray",
    )
    assert ours.data == theirs.data


@given(FLOATS, st.sampled_from(["C", "F"]))
def test_view_reads_both_orders_without_a_copy(values, order):
    array = Array(np.asarray(values, order=order))
    seen = view(array, "float32", values.shape)
    np.testing.assert_array_equal(seen, values)
    assert not seen.flags.writeable
    assert not seen.flags.owndata


@given(st.lists(FLOATS, max_size=5))
def test_flatten_and_unflatten_are_inverse(values):
    record = ArrayRecord({f"layer{i}": Array(v) for i, v in enumerate(values)})
    record["counter"] = Array(np.array(7))
    spec = Spec.of(record)
    flat = flatten(record, spec)
    assert flat.dtype == np.float32
    assert len(flat) == spec.size == sum(v.size for v in values)
    again = unflatten(flat, spec, record)
    assert list(again) == list(record)
    assert all(again[k].data == record[k].data for k in record)


def test_integer_arrays_are_not_part_of_the_vector():
    record = ArrayRecord({"n": Array(np.array([3, 4])), "w": Array(np.ones(2, "f4"))})
    spec = Spec.of(record)
    changed = unflatten(np.zeros(2, np.float32), spec, record)
    assert spec.size == 2
    np.testing.assert_array_equal(changed["n"].numpy(), [3, 4])
    np.testing.assert_array_equal(changed["w"].numpy(), [0, 0])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types_keep_their_dtype(dtype):
    record = ArrayRecord({"w": Array(np.arange(3).astype(dtype))})
    spec = Spec.of(record)
    again = unflatten(flatten(record, spec) + 1, spec, record)
    assert again["w"].dtype == dtype
    np.testing.assert_array_equal(again["w"].numpy(), [1, 2, 3])


def test_spec_digest_tells_models_apart():
    a = ArrayRecord({"w": Array(np.ones((2, 3), "f4"))})
    b = ArrayRecord({"w": Array(np.ones((3, 2), "f4"))})
    assert Spec.of(a).digest == Spec.of(a).digest != Spec.of(b).digest


def test_missing_array_is_a_protocol_error():
    spec = Spec.of(ArrayRecord({"w": Array(np.ones(2, "f4"))}))
    with pytest.raises(ProtocolError, match="array-keys"):
        flatten(ArrayRecord({"v": Array(np.ones(2, "f4"))}), spec)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_code(data):
    array = Array("float32", (2, 3), "numpy.ndarray", data)
    with pytest.raises(ProtocolError):
        view(array, "float32", (2, 3))


@given(st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_a_damaged_header_never_reads_beyond_the_data(position, patch):
    good = pack(np.arange(6, dtype=np.float32).reshape(2, 3)).data
    position = min(position, len(good) - len(patch))
    data = good[:position] + patch + good[position + len(patch) :]
    try:
        seen = view(Array("float32", (2, 3), "numpy.ndarray", data), "float32", (2, 3))
    except ProtocolError:
        return
    assert seen.shape == (2, 3)
    assert seen.nbytes == 24


def test_content_bytes_counts_data_and_names():
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": pack(np.zeros(1000, np.float32))}),
            "config": ConfigRecord({"round": 1}),
        }
    )
    assert 4128 < content_bytes(content) < 4128 + 64


def test_the_size_of_any_content_can_be_told():
    """Flower's own count fails at empty values, which any client can send."""
    values = {"a": "", "b": b"", "c": [], "d": [b"", b"xy"], "e": True, "f": [1, 2]}
    content = RecordDict({"config": ConfigRecord(values)})
    assert content_bytes(content) == len("config") + len("abcdef") + 2 + 1 + 16
    usual = ConfigRecord({"x": 1.5, "name": "text", "list": [True, False], "b": b"123"})
    numbers = MetricRecord({"n": 3, "losses": [0.5, 0.25]})
    for record in (usual, numbers, ArrayRecord({"w": pack(np.ones(3))})):
        assert record_bytes(record) == record.count_bytes()
