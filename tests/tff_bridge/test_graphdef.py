"""A graph's operators are read as TensorFlow would read them, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tff_bridge import graphdef, wire_format
from tff_bridge.allowed_ops import ALLOWED_OPS
from tff_bridge.graphdef import scan
from tff_bridge.plan import read_plan
from truststram.errors import ProtocolError

from .plans import BREAST_CANCER
from .protobuf import attribute, calls, constant, function, graph, node, number, text


def refused(data: bytes) -> str:
    with pytest.raises(ProtocolError) as error:
        scan(data)
    return error.value.code


def test_operators_of_graph_and_functions_are_found():
    found = scan(
        graph(
            node("Add"),
            node("PartitionedCall", attribute("f", calls("__inner_1"))),
            node("__inner_1"),
            functions=(function("__inner_1", node("Mul"), node("ReadFile")),),
        )
    )
    assert found.ops == {"Add", "Mul", "PartitionedCall", "ReadFile"}
    assert found.functions == {"__inner_1"}
    assert found.nodes == 5


def test_constants_are_counted_by_shape_not_by_bytes():
    assert scan(graph(constant((10, 3)))).constant_bytes == 120
    assert scan(graph(constant((10, 3), dtype=9))).constant_bytes == 240
    assert refused(graph(constant((1 << 20, 1 << 20)))) == "graph-size"
    half = graphdef.MAX_CONSTANT // 8 + 1
    assert scan(graph(constant((half,))))
    assert refused(graph(constant((half,)), constant((half,)))) == "graph-size"
    assert refused(graph(constant((-1 & (1 << 64) - 1,)))) == "graph-size"


def test_a_constant_in_a_function_or_list_counts_too():
    big = constant((1 << 40,))
    assert refused(graph(functions=(function("__f_1", big),))) == "graph-size"
    listed = text(1, text(8, number(1, 1) + text(2, text(2, number(1, 1 << 40)))))
    assert refused(graph(node("Const", attribute("x", listed)))) == "graph-size"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        # A function may not look like an operator, nor be called without being there.
        (graph(functions=(function("Add", node("ReadFile")),)), "format"),
        (graph(functions=(function("__f;Add", node("Add")),)), "format"),
        (graph(node("PartitionedCall", attribute("f", calls("ReadFile")))), "function"),
        (
            graph(node("If", attribute("f", text(1, text(9, text(1, "PyFunc")))))),
            "function",
        ),
        # protobuf would take the last of two names.
        (graph(node("Add") + text(2, "ReadFile")), "format"),
        (graph(text(1, "n")), "format"),
        (graph(node("")), "format"),
        (graph(node("Réad")), "format"),
        (graph(node("\x1b[2J")), "format"),
        (graph(text(1, "n") + text(2, "") + text(2, "Add")), "format"),
        # Fields and wire types that a GraphDef does not have.
        (graph(node("Add")) + text(9, "x"), "format"),
        (graph(node("Add")) + number(1, 5), "format"),
        (graph(node("Add")) + b"\x0b\x0c", "format"),
        (graph(node("Add") + text(99, "x")), "format"),
        # Lengths that lead out of the message.
        (graph(node("Add"))[:-1], "format"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "format"),
        (b"\x0a" + b"\x80" * 20, "format"),
        (b"\xff" * 30, "format"),
        (graph(node("Add", device="/device:GPU:0")), "device"),
        (graph(node("Add", device="/job:worker/task:3")), "device"),
        (graph(constant((1,), dtype=20 + 101)), "format"),
    ],
)
def test_what_is_no_plain_graph_is_refused(data, code):
    assert refused(data) == f"graph-{code}"


def test_the_walk_is_bounded_by_fields_and_dimensions(monkeypatch):
    assert scan(graph(constant((1,) * 254))).constant_bytes == 4
    assert refused(graph(constant((1,) * 255))) == "graph-size"
    # 2000 dimensions of 63 bits make a number of 126,000 bits: it is never computed.
    monkeypatch.setattr(graphdef.math, "prod", None)
    assert refused(graph(constant(((1 << 63) - 1,) * 2000))) == "graph-size"
    monkeypatch.undo()
    twice = text(2, text(2, number(1, 1) + number(1, 1 << 40)))
    tensor = attribute("value", text(8, number(1, 1) + twice))
    assert refused(graph(node("Const", tensor))) == "graph-format"
    data = graph(functions=(function("__f_1"),))
    # Library, function, signature and its name.
    monkeypatch.setattr(wire_format, "MAX_FIELDS", 4)
    assert scan(data)
    assert refused(graph(node("Add")) + data) == "graph-size"


def test_nested_attributes_end():
    deep = calls("__f_1")
    for _ in range(40):
        deep = text(10, text(1, "__f_1") + text(2, text(1, "a") + text(2, deep)))
    data = graph(node("If", attribute("f", deep)), functions=(function("__f_1"),))
    assert refused(data) == "graph-format"


def test_the_number_of_nodes_is_bounded(monkeypatch):
    both = node("If", attribute("a", calls("__a")), attribute("b", calls("__b")))
    named = (function("__a"), function("__b"))
    assert scan(graph(both, functions=named))
    with monkeypatch.context() as patch:
        patch.setattr(graphdef, "MAX_NODES", 1)
        assert refused(graph(both, functions=named)) == "graph-size"
    monkeypatch.setattr(graphdef, "MAX_NODES", 3)
    assert scan(graph(*[node("Add")] * 3)).nodes == 3
    assert refused(graph(*[node("Add")] * 4)) == "graph-size"


PIECES = read_plan(BREAST_CANCER).programs["train"].pieces
GRAPHS = [PIECES[name].graph for name in ("accumulate", "update", "work")]


@st.composite
def damaged(draw):
    """A real graph with a few bytes changed, removed, repeated or put in."""
    data = bytearray(draw(st.sampled_from(GRAPHS)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) - 1))
        size = draw(st.integers(0, 40))
        piece = draw(st.sampled_from(["flip", "cut", "repeat", "insert"]))
        if piece == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif piece == "cut":
            del data[at : at + size]
        elif piece == "repeat":
            data[at:at] = data[at : at + size]
        else:
            data[at:at] = draw(st.binary(min_size=size, max_size=size))
        if not data:
            break
    return bytes(data)


@given(damaged() | st.binary(max_size=200))
def test_what_is_accepted_is_what_tensorflow_reads(data):
    """The walker and TensorFlow's parser never see different operators."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework import graph_pb2

    try:
        found = scan(data)
    except ProtocolError:
        return
    try:
        parsed = graph_pb2.GraphDef.FromString(data)
    except DecodeError:
        return  # TensorFlow will not load it
    nodes = [*parsed.node, *(n for f in parsed.library.function for n in f.node_def)]
    functions = {f.signature.name for f in parsed.library.function}
    assert found.ops == {n.op for n in nodes} - functions
    assert found.functions == functions


def test_real_graphs_are_accepted():
    for data in GRAPHS:
        assert scan(data).nodes > 0


def test_no_allowed_operator_reaches_outside_its_graph():
    """As TensorFlow describes its own operators."""
    from tensorflow.python.framework import op_def_registry as registry

    iterators = {
        *("AnonymousIteratorV3", "IteratorGetNext"),
        *("IteratorGetNextAsOptional", "MakeIterator"),
    }
    named = {"shared_name", "container", "filename", "file_pattern", "token"}
    resource = 20
    for name in ALLOWED_OPS:
        op = registry.get(name)
        assert op is not None, f"{name} is no operator of TensorFlow"
        assert not named & {a.name for a in op.attr}, name
        touched = {a.type for a in (*op.input_arg, *op.output_arg)}
        assert resource not in touched or name in iterators, name
