"""Run a traced torch model with TensorFlow: ATen operators as TensorFlow ones.

:mod:`tff_bridge.trace` writes a model down as a list of ATen operators with named
arguments; :func:`apply` evaluates the list inside a ``tf.function``. Parameters keep
torch's names, order and memory layout (OIHW, NCHW): where TensorFlow wants another
layout, the transpose is part of the graph. So an update computed here fits the torch
model leaf by leaf.

TensorFlow is an argument (``run.tf``), never imported: which operators there are can be
looked up without it, and the compiler's environment has an older TensorFlow than ours.
For the same reason nothing of this package's siblings is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import elementwise, network, pooling, sequences, shapes
from .table import Operators, UnsupportedOperator

__all__ = ["OPERATORS", "Run", "UnsupportedOperator", "apply", "unsupported"]

OPERATORS: Operators = {
    **elementwise.OPERATORS,
    **shapes.OPERATORS,
    **network.OPERATORS,
    **pooling.OPERATORS,
    **sequences.OPERATORS,
}


@dataclass(frozen=True)
class Run:
    """What an operator may need besides its arguments.

    Attributes
    ----------
    tf : module
        TensorFlow.
    training : bool
        False in evaluation: no dropout, normalisation by stored statistics.
    """

    tf: Any
    training: bool


def unsupported(graph: Mapping[str, Any]) -> list[str]:
    """Return a line for each operator of a traced graph that is not in the table."""
    places: dict[str, list[str]] = {}
    for node in graph["nodes"]:
        if node["op"] not in OPERATORS:
            places.setdefault(node["op"], []).append(node["at"] or "the model")
    return [
        f"{op} in {', '.join(dict.fromkeys(where))}"
        for op, where in sorted(places.items())
    ]


def apply(
    run: Run,
    graph: Mapping[str, Any],
    parameters: Sequence[Any],
    constants: Mapping[str, Any],
    x: Any,
) -> Any:
    """Return the model's output.

    Parameters
    ----------
    run : Run
    graph : mapping
        From :func:`tff_bridge.trace.trace`.
    parameters : sequence of tensors
        In the order of ``graph["parameters"]``.
    constants : mapping
        Arrays by the names in ``graph["constants"]``.
    x : tensor
        A batch; its first size may vary.

    Raises
    ------
    UnsupportedOperator
        For an operator or an argument that has no translation; names the place.
    """
    values: dict[str, Any] = {graph["input"]["name"]: x}
    for (name, _, _), value in zip(graph["parameters"], parameters, strict=True):
        values[name] = value
    for name, key in graph["constants"]:
        values[name] = run.tf.constant(constants[key])
    for node in graph["nodes"]:
        operator = OPERATORS.get(node["op"])
        if operator is None:
            raise UnsupportedOperator("; ".join(unsupported(graph)))
        arguments = {k: _value(run, v, values) for k, v in node["args"].items()}
        try:
            values[node["name"]] = operator(run, **arguments)
        except UnsupportedOperator as error:
            place = node["at"] or "the model"
            raise UnsupportedOperator(f"{node['op']} in {place}: {error}") from None
    return values[graph["output"]]


def _value(run: Run, argument: Any, values: Mapping[str, Any]) -> Any:
    """Return an argument with references and data types in place."""
    if isinstance(argument, dict):
        if "node" in argument:
            return values[argument["node"]]
        return run.tf.dtypes.as_dtype(argument["dtype"])
    if isinstance(argument, list):
        return [_value(run, item, values) for item in argument]
    return argument
