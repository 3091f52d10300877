"""What a TensorFlow graph contains, read from its bytes without TensorFlow.

A ``GraphDef`` is code: loading it runs TensorFlow's importer, calling it runs its
operators. A silo therefore reads a graph with this module first, which returns the
operators of the main graph and of every library function.

The walk must not see another graph than TensorFlow's own parser does. What a plain
``GraphDef`` does not need (:mod:`.wire_format`) and repeated singular names are
therefore refused, rather than skipped or resolved as protobuf would.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from .wire_format import Reader, Span, wrong

__all__ = ["Contents", "scan"]

MAX_NODES = 200_000
MAX_DEPTH = 16
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
    found, data = Contents(), Reader(graph)
    for number, value in data.fields(data.whole, "graph"):
        if number == 1:
            _node(data, value, found)
        elif number == 2:
            _library(data, value, found)
    missing = found._called - found.functions
    if missing:
        # Whatever is called by name and is no function could be any operator.
        raise wrong("function", f"{len(missing)} called functions are not in the graph")
    found.ops -= found.functions
    return found


def _library(data: Reader, span: Span, found: Contents) -> None:
    for _, function in data.fields(span, "library"):
        for number, value in data.fields(function, "function"):
            if number == 1:
                found.functions.add(_function_name(data, value))
            elif number == 3:
                _node(data, value, found)
            elif number == 5:
                _entry(data, value, found)


def _function_name(data: Reader, span: Span) -> str:
    name: str | None = None
    for number, value in data.fields(span, "signature"):
        if number == 1:
            if name is not None:
                raise wrong("format", "a library function has two names")
            name = data.text(value)
    if name is None or not _FUNCTION.fullmatch(name):
        raise wrong("format", "a library function has an unusual name")
    return name


def _node(data: Reader, span: Span, found: Contents) -> None:
    found.nodes += 1
    if found.nodes > MAX_NODES:
        raise wrong("size", f"more than {MAX_NODES} nodes")
    op: str | None = None
    for number, value in data.fields(span, "node"):
        if number == 2:
            if op is not None:
                raise wrong("format", "a node must name one operator")
            op = data.text(value)
        elif number == 4 and data.text(value) not in _DEVICES:
            raise wrong("device", "a node asks for another device than the CPU")
        elif number == 5:
            _entry(data, value, found)
    if op is None or not _OPERATOR.fullmatch(op):
        raise wrong("format", "a node must name one operator")
    found.ops.add(op)


def _entry(data: Reader, span: Span, found: Contents, depth: int = 0) -> None:
    """Walk one entry of a map from names to attributes."""
    for number, value in data.fields(span, "entry"):
        if number == 2:
            _attr(data, value, found, depth)


def _attr(data: Reader, span: Span, found: Contents, depth: int) -> None:
    """Note the constants and the called functions in an attribute's value."""
    if depth > MAX_DEPTH:
        raise wrong("format", f"attributes nested more than {MAX_DEPTH} deep")
    for number, value in data.fields(span, "attr"):
        if number == 1:
            for inner, item in data.fields(value, "list"):
                if inner == 8:
                    _tensor(data, item, found)
                elif inner == 9:
                    _func(data, item, found, depth)
        elif number == 8:
            _tensor(data, value, found)
        elif number == 10:
            _func(data, value, found, depth)


def _func(data: Reader, span: Span, found: Contents, depth: int) -> None:
    for number, value in data.fields(span, "func"):
        if number == 1:
            name = data.text(value)
            if name:
                found._called.add(name)
                if len(found._called) > MAX_NODES:
                    raise wrong("size", f"more than {MAX_NODES} called functions")
        else:
            _entry(data, value, found, depth + 1)


def _tensor(data: Reader, span: Span, found: Contents) -> None:
    """Add the memory of a constant, whose few bytes may stand for a large shape."""
    dtype, sizes = 0, list[int]()
    for number, value in data.fields(span, "tensor"):
        if number == 1:
            dtype = value[0]
        elif number == 2:
            for kind, dim in data.fields(value, "shape"):
                if kind == 2:
                    sizes += _dims(data, dim)
                    if len(sizes) > MAX_DIMS:
                        raise wrong("size", f"more than {MAX_DIMS} dimensions")
    if dtype not in _ITEM:
        raise wrong("format", f"a constant of data type {dtype}")
    found.constant_bytes += _ITEM[dtype] * math.prod(sizes)  # of few sizes
    if found.constant_bytes > MAX_CONSTANT:
        raise wrong("size", f"constants of more than {MAX_CONSTANT} bytes")


def _dims(data: Reader, span: Span) -> list[int]:
    """Return the sizes that one dimension has: at most one, or protobuf takes any."""
    sizes = [v[0] for n, v in data.fields(span, "dim") if n == 1]
    if len(sizes) > 1:
        raise wrong("format", "a dimension has two sizes")
    return sizes
