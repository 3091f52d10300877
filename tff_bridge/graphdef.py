"""What a TensorFlow graph contains, read from its bytes without TensorFlow.

A ``GraphDef`` is code: loading it runs TensorFlow's importer, calling it runs its
operators. A silo therefore reads a graph with this module first. It walks protobuf's
wire format (protobuf.dev, "Encoding"), of which it accepts only what a ``GraphDef``
needs, and returns the operators of the main graph and of every library function.

The walk must not see another graph than TensorFlow's own parser does. Fields that the
messages below do not have, groups and repeated singular names are therefore refused,
rather than skipped or resolved as protobuf would.

The field numbers are those of tensorflow/core/framework/{graph, node_def, function,
attr_value, tensor, tensor_shape}.proto.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from truststram.errors import ProtocolError

__all__ = ["Contents", "scan"]

MAX_NODES = 200_000
MAX_DEPTH = 16
MAX_FIELDS = 1 << 23
# As many dimensions as a tensor of TensorFlow may have.
MAX_DIMS = 254
MAX_CONSTANT = 1 << 28
# Names of library functions that TensorFlow's tracing makes. No operator is called so:
# a function cannot stand in for an operator.
_OPERATOR = re.compile(r"[A-Za-z_][A-Za-z0-9_.>]{0,500}")
_FUNCTION = re.compile(r"__[A-Za-z0-9_.]{1,500}")
_DEVICES = ("", "/device:CPU:0")
# Bytes of an element by tensorflow.DataType; strings and variants count as pointers.
_ITEM = {1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 7: 24, 9: 8, 10: 1, 14: 2, 17: 2, 19: 2}
_ITEM |= {20: 16, 21: 24, 22: 4, 23: 8}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Span = tuple[int, int]


@dataclass
class Contents:
    """What :func:`scan` found.

    Attributes
    ----------
    ops : set of str
        Operators, without calls of the graph's own functions.
    functions : set of str
        Names of the library functions.
    nodes : int
        Nodes in the graph and in all functions.
    constant_bytes : int
        Memory that all constants take when they are loaded.
    """

    ops: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    nodes: int = 0
    constant_bytes: int = 0
    _called: set[str] = field(default_factory=set)
    _fields: int = 0


def scan(graph: bytes) -> Contents:
    """Return what a serialised ``GraphDef`` contains.

    Parameters
    ----------
    graph : bytes
        Untrusted. Time and memory are linear in its length.

    Raises
    ------
    ProtocolError
        ``graph-format`` if it is not a plain GraphDef, ``graph-size`` for too many
        nodes or fields or too large constants, ``graph-function`` for a call of a
        function that the graph does not have, ``graph-device`` for another device than
        the CPU.
    """
    found, data = Contents(), memoryview(graph)
    for number, value in _fields(data, (0, len(data)), "graph", found):
        if number == 1:
            _node(data, value, found)
        elif number == 2:
            _library(data, value, found)
    missing = found._called - found.functions
    if missing:
        # Whatever is called by name and is no function could be any operator.
        raise _wrong(
            "function", f"{len(missing)} called functions are not in the graph"
        )
    found.ops -= found.functions
    return found


# Allowed fields of each message: number -> wire type.
_MESSAGES: dict[str, dict[int, int]] = {
    "graph": {1: _BYTES, 2: _BYTES, 3: _VARINT, 4: _BYTES},
    "library": {1: _BYTES},
    "function": {1: _BYTES, 3: _BYTES, 4: _BYTES, 5: _BYTES, 6: _BYTES, 7: _BYTES},
    "signature": {
        1: _BYTES,
        2: _BYTES,
        3: _BYTES,
        4: _BYTES,
        5: _BYTES,
        6: _BYTES,
        16: _VARINT,
        17: _VARINT,
        18: _VARINT,
        19: _VARINT,
        20: _BYTES,
        21: _VARINT,
    },
    "node": dict.fromkeys(range(1, 8), _BYTES),
    "entry": {1: _BYTES, 2: _BYTES},
    "attr": {
        1: _BYTES,
        2: _BYTES,
        3: _VARINT,
        4: _FIXED32,
        5: _VARINT,
        6: _VARINT,
        7: _BYTES,
        8: _BYTES,
        9: _BYTES,
        10: _BYTES,
    },
    "list": dict.fromkeys(range(2, 10), _BYTES),
    "func": {1: _BYTES, 2: _BYTES},
    "tensor": {1: _VARINT, 2: _BYTES, 3: _VARINT} | dict.fromkeys(range(4, 18), _BYTES),
    "shape": {2: _BYTES, 3: _VARINT},
    "dim": {1: _VARINT, 2: _BYTES},
}


def _library(data: memoryview, span: Span, found: Contents) -> None:
    for _, function in _fields(data, span, "library", found):
        for number, value in _fields(data, function, "function", found):
            if number == 1:
                found.functions.add(_function_name(data, value, found))
            elif number == 3:
                _node(data, value, found)
            elif number == 5:
                _entry(data, value, found)


def _function_name(data: memoryview, span: Span, found: Contents) -> str:
    name: str | None = None
    for number, value in _fields(data, span, "signature", found):
        if number == 1:
            if name is not None:
                raise _wrong("format", "a library function has two names")
            name = _text(data, value)
    if name is None or not _FUNCTION.fullmatch(name):
        raise _wrong("format", "a library function has an unusual name")
    return name


def _node(data: memoryview, span: Span, found: Contents) -> None:
    found.nodes += 1
    if found.nodes > MAX_NODES:
        raise _wrong("size", f"more than {MAX_NODES} nodes")
    op: str | None = None
    for number, value in _fields(data, span, "node", found):
        if number == 2:
            if op is not None:
                raise _wrong("format", "a node must name one operator")
            op = _text(data, value)
        elif number == 4 and _text(data, value) not in _DEVICES:
            raise _wrong("device", "a node asks for another device than the CPU")
        elif number == 5:
            _entry(data, value, found)
    if op is None or not _OPERATOR.fullmatch(op):
        raise _wrong("format", "a node must name one operator")
    found.ops.add(op)


def _entry(data: memoryview, span: Span, found: Contents, depth: int = 0) -> None:
    """Walk one entry of a map from names to attributes."""
    for number, value in _fields(data, span, "entry", found):
        if number == 2:
            _attr(data, value, found, depth)


def _attr(data: memoryview, span: Span, found: Contents, depth: int) -> None:
    """Note the constants and the called functions in an attribute's value."""
    if depth > MAX_DEPTH:
        raise _wrong("format", f"attributes nested more than {MAX_DEPTH} deep")
    for number, value in _fields(data, span, "attr", found):
        if number == 1:
            for inner, item in _fields(data, value, "list", found):
                if inner == 8:
                    _tensor(data, item, found)
                elif inner == 9:
                    _func(data, item, found, depth)
        elif number == 8:
            _tensor(data, value, found)
        elif number == 10:
            _func(data, value, found, depth)


def _func(data: memoryview, span: Span, found: Contents, depth: int) -> None:
    for number, value in _fields(data, span, "func", found):
        if number == 1:
            name = _text(data, value)
            if name:
                found._called.add(name)
                if len(found._called) > MAX_NODES:
                    raise _wrong("size", f"more than {MAX_NODES} called functions")
        else:
            _entry(data, value, found, depth + 1)


def _tensor(data: memoryview, span: Span, found: Contents) -> None:
    """Add the memory of a constant, whose few bytes may stand for a large shape."""
    dtype, sizes = 0, list[int]()
    for number, value in _fields(data, span, "tensor", found):
        if number == 1:
            dtype = value[0]
        elif number == 2:
            for kind, dim in _fields(data, value, "shape", found):
                if kind == 2:
                    sizes += _dims(data, dim, found)
                    if len(sizes) > MAX_DIMS:
                        raise _wrong("size", f"more than {MAX_DIMS} dimensions")
    if dtype not in _ITEM:
        raise _wrong("format", f"a constant of data type {dtype}")
    found.constant_bytes += _ITEM[dtype] * math.prod(sizes)  # of few sizes
    if found.constant_bytes > MAX_CONSTANT:
        raise _wrong("size", f"constants of more than {MAX_CONSTANT} bytes")


def _dims(data: memoryview, span: Span, found: Contents) -> list[int]:
    """Return the sizes that one dimension has: at most one, or protobuf takes any."""
    sizes = [v[0] for n, v in _fields(data, span, "dim", found) if n == 1]
    if len(sizes) > 1:
        raise _wrong("format", "a dimension has two sizes")
    return sizes


def _fields(
    data: memoryview, span: Span, message: str, found: Contents
) -> Iterator[tuple[int, Span]]:
    """Yield (number, value) of each field of a message in ``span``.

    A value is the span of its bytes; of a varint it is (number, 0).
    """
    allowed = _MESSAGES[message]
    at, end = span
    while at < end:
        found._fields += 1
        if found._fields > MAX_FIELDS:
            raise _wrong("size", f"more than {MAX_FIELDS} fields")
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if allowed.get(number) != wire:
            raise _wrong("format", f"field {number} of type {wire} in a {message}")
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield number, (value, 0)
            continue
        size = 4 if wire == _FIXED32 else 8
        if wire == _BYTES:
            size, at = _varint(data, at, end)
        if size > end - at:
            raise _wrong("format", f"a field of a {message} ends after its message")
        yield number, (at, at + size)
        at += size


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return an unsigned varint and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise _wrong("format", "a number does not end")


def _text(data: memoryview, span: Span) -> str:
    try:
        return bytes(data[span[0] : span[1]]).decode("ascii")
    except UnicodeDecodeError:
        raise _wrong("format", "a name is not ASCII") from None


def _wrong(code: str, detail: str) -> ProtocolError:
    return ProtocolError(f"graph-{code}", detail)
