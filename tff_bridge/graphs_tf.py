"""Graphs of a plan while it is compiled: smaller, and tried out.

Runs in the compiler's environment only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["evaluate", "is_additive", "shrink"]


def shrink(graph: Any) -> None:
    """Leave out what a graph does not need: notes, and the bytes of zeros."""
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    for node in nodes:
        node.ClearField("experimental_debug_info")
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        if (
            tensor
            and len(tensor.tensor_content) > 64
            and not any(tensor.tensor_content)
        ):
            tensor.ClearField("tensor_content")  # no values means zeros


def evaluate(graph: Any, outputs: list[str], feed: Mapping[str, Any]) -> list[Any]:
    """Return what a graph computes, without TensorFlow Federated's executor."""
    if not outputs:
        return []
    with tf.Graph().as_default() as made, tf.compat.v1.Session(graph=made) as session:
        tf.import_graph_def(graph, name="")
        values: list[Any] = session.run(outputs, feed)
        return values


def is_additive(pieces: dict[str, Any], graphs: Mapping[str, bytes]) -> bool:
    """Return whether ``accumulate`` adds leaf by leaf, starting at zeros.

    Tried on random integers, on which a sum of floats is exact too.
    """
    zero, add = pieces["zero"], pieces["accumulate"]
    total, given = zero["outputs"], add["inputs"]
    if [x["shape"] for x in given[len(total) :]] != [x["shape"] for x in total]:
        return False
    shapes = [x["shape"] for x in total]
    if any(size is None for shape in shapes for size in shape):
        return False
    if any(x["dtype"] in ("string", "bool") for x in given):
        return False
    made = {
        n: tf.compat.v1.GraphDef.FromString(graphs[n]) for n in ("zero", "accumulate")
    }
    start = evaluate(made["zero"], [x["tensor"] for x in total], {})
    if any(np.any(value) for value in start):
        return False
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 1000, x["shape"]).astype(x["dtype"]) for x in given]
    feed = {x["tensor"]: v for x, v in zip(given, values, strict=True)}
    found = evaluate(made["accumulate"], [x["tensor"] for x in add["outputs"]], feed)
    terms = zip(values[: len(total)], values[len(total) :], strict=True)
    return all(np.array_equal(f, a + b) for f, (a, b) in zip(found, terms, strict=True))
