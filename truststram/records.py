"""Flower's ArrayRecord as one flat float32 vector, without copies where possible.

A model on the wire is an ``ArrayRecord``: named arrays in NumPy's ``.npy`` format.
Aggregation wants one vector. :class:`Spec` describes a model once (names, shapes,
dtypes); :func:`view` reads an array in place; :func:`flatten` and :func:`unflatten`
translate.

Only floating-point arrays are part of the vector. Integer and boolean arrays (counters
such as BatchNorm's ``num_batches_tracked``) are neither averaged nor noised: they keep
the value that the server has.

Everything read here may come from a hostile client: sizes are checked against the
model's before anything is allocated, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

from .errors import ProtocolError

__all__ = [
    "Float32",
    "Leaf",
    "Spec",
    "blank",
    "content_bytes",
    "flat_leaves",
    "flatten",
    "pack",
    "record_bytes",
    "records_of",
    "unflatten",
    "view",
]

Float32 = NDArray[np.float32]
Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)
STYPE = "numpy.ndarray"
# NumPy's own limit; a header is text that is parsed.
MAX_HEADER = 10_000


@dataclass(frozen=True)
class Leaf:
    """One array of a model: ``offset`` is its place in the flat vector."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def is_float(self) -> bool:
        """Whether the array is part of the flat vector."""
        return np.dtype(self.dtype).kind == "f"


@dataclass(frozen=True)
class Spec:
    """Names, shapes and dtypes of a model, in order."""

    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, arrays: ArrayRecord) -> Spec:
        """Describe a trusted record (the server's own model)."""
        leaves, offset = [], 0
        for name, array in arrays.items():
            leaf = Leaf(name, tuple(array.shape), array.dtype, offset)
            leaves.append(leaf)
            offset += leaf.size if leaf.is_float else 0
        return cls(tuple(leaves))

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(leaf.size for leaf in self.leaves if leaf.is_float)

    @cached_property
    def digest(self) -> str:
        """SHA-256 that equal specs share, in hexadecimal."""
        text = json.dumps([(x.name, x.shape, x.dtype) for x in self.leaves])
        return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the header that NumPy writes before such an array."""
    buffer = io.BytesIO()
    description = npy.dtype_to_descr(np.dtype(dtype))
    npy.write_array_header_1_0(
        buffer, {"descr": description, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def pack(values: NDArray[np.generic]) -> Array:
    """Return ``values`` as a Flower array; one copy (Flower's own makes two)."""
    shape = tuple(int(n) for n in values.shape)
    values = np.ascontiguousarray(values)  # turns a scalar into one dimension
    body = values.reshape(-1).view(np.uint8).data if values.size else b""
    data = b"".join((_header(values.dtype.str, shape), body))
    return Array(str(values.dtype), shape, STYPE, data)


def blank(shape: tuple[int, ...]) -> tuple[Array, Float32]:
    """Return a float32 array of zeros and the writable values inside it.

    For an array that this process fills and reads itself: its ``data`` is a bytearray,
    so nothing is copied. Use :func:`pack` for what is sent.
    """
    header = _header("<f4", shape)
    data = bytearray(len(header) + 4 * math.prod(shape))
    data[: len(header)] = header
    array = Array("float32", shape, STYPE, b"")
    array.data = data  # type: ignore[assignment]  # read like bytes, see view()
    values = np.frombuffer(data, np.float32, offset=len(header))
    return array, values.reshape(shape)


def view(array: Array, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Return a view of an untrusted array that must be ``dtype``/``shape``.

    Read-only, unless the array is one of this process's own (:func:`blank`).

    The declared type, the ``.npy`` header and the number of bytes must all agree with
    what is expected; no memory is allocated for the values.

    Raises
    ------
    ProtocolError
        ``stype``, ``dtype``, ``shape``, ``header`` or ``size``.
    """
    if array.stype != STYPE:
        raise ProtocolError("stype", "the array is not in NumPy format")
    if array.dtype != dtype:
        raise ProtocolError("dtype", f"declared dtype is not {dtype}")
    if tuple(array.shape) != shape:
        raise ProtocolError("shape", f"declared shape is not {shape}")
    data = array.data
    header = _header(np.dtype(dtype).str, shape)
    if data.startswith(header):
        start, order = len(header), "C"
    else:
        start, order = _parsed_header(data, np.dtype(dtype), shape)
    count = math.prod(shape)
    if len(data) - start != count * np.dtype(dtype).itemsize:
        raise ProtocolError("size", f"{len(data) - start} bytes of data for {shape}")
    flat = np.frombuffer(data, dtype=dtype, count=count, offset=start)
    return flat.reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]  # order is C or F


def _parsed_header(
    data: bytes, dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> tuple[int, str]:
    """Read a header that is not byte for byte the usual one (Fortran order, v2.0)."""
    file = io.BytesIO(data[: MAX_HEADER + 16])
    try:
        version = npy.read_magic(file)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        found = readers[version](file, max_header_size=MAX_HEADER)
    except Exception as error:  # noqa: BLE001  # a parser fed with garbage
        raise ProtocolError("header", type(error).__name__) from None
    found_shape, fortran, found_dtype = found
    if found_dtype != dtype:
        raise ProtocolError("dtype", f"the data's dtype is not {dtype}")
    if found_shape != shape:
        raise ProtocolError("shape", f"the data's shape is not {shape}")
    return file.tell(), "F" if fortran else "C"


def flat_leaves(
    arrays: ArrayRecord, spec: Spec
) -> Iterator[tuple[slice, NDArray[np.generic]]]:
    """Yield (place in the flat vector, values in 1-D) of the floating-point arrays.

    Raises
    ------
    ProtocolError
        As :func:`view`, or ``array-keys`` when names differ from the spec's.
    """
    if len(arrays) != len(spec.leaves):
        raise ProtocolError(
            "array-keys", f"{len(arrays)} arrays, not {len(spec.leaves)}"
        )
    for leaf in spec.leaves:
        if leaf.name not in arrays:
            raise ProtocolError("array-keys", "an array of the model is missing")
        values = view(arrays[leaf.name], leaf.dtype, leaf.shape)
        if leaf.is_float:
            yield slice(leaf.offset, leaf.offset + leaf.size), values.reshape(-1)


def flatten(arrays: ArrayRecord, spec: Spec) -> Float32:
    """Return the floating-point arrays as one new float32 vector of ``spec.size``."""
    flat = np.empty(spec.size, np.float32)
    for place, values in flat_leaves(arrays, spec):
        flat[place] = values
    return flat


def unflatten(flat: Float32, spec: Spec, base: ArrayRecord) -> ArrayRecord:
    """Return a model with the values of ``flat``; other arrays come from ``base``.

    Parameters
    ----------
    flat : float32 array of shape (spec.size,)
    spec : Spec
    base : ArrayRecord
        A model of this spec; its integer and boolean arrays are taken over.
    """
    record = ArrayRecord()
    for leaf in spec.leaves:
        if leaf.is_float:
            values = flat[leaf.offset : leaf.offset + leaf.size]
            cast = values.astype(leaf.dtype, copy=False)
            record[leaf.name] = pack(cast.reshape(leaf.shape))
        else:
            record[leaf.name] = base[leaf.name]
    return record


def records_of(content: RecordDict, kind: type[Record]) -> list[Record]:
    """Return the records of one kind, in order.

    As ``content.array_records`` and its like, which build a checked dictionary at every
    look and cost more than all else that is done to a small reply.
    """
    return [record for record in content.values() if isinstance(record, kind)]


def record_bytes(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    """Return the payload of a record in bytes: arrays or values, and their names.

    As Flower's ``count_bytes``, which fails at an empty text or list: a client could
    stop a run with one.
    """
    if isinstance(record, ArrayRecord):
        return record.count_bytes()
    return sum(len(name) + _value_bytes(value) for name, value in record.items())


def _value_bytes(value: object) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, list):
        return sum(map(_value_bytes, value))
    return 1 if isinstance(value, bool) else 8


def content_bytes(content: RecordDict) -> int:
    """Return the payload of a message in bytes: arrays, values and their names."""
    return sum(len(name) + record_bytes(record) for name, record in content.items())
