"""Write a torch model down as a list of ATen operators.

``torch.export`` captures the model in training form, with a batch of any size, before
its operators are decomposed: a convolution stays a convolution. The result is JSON (no
code) and arrays, which :mod:`tff_bridge.ops_tf` turns into a TensorFlow graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from truststram.errors import ConfigError

from .ops_tf import unsupported

__all__ = ["Traced", "trace"]

MAX_BATCH = 65536
# Operators whose result shares memory with their argument.
_VIEWS = (
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "t"),
    *("unsqueeze", "squeeze", "select", "slice", "expand", "detach", "alias"),
    *("chunk", "split", "split_with_sizes", "contiguous", "getitem"),
)
_BATCH_NORM = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)


@dataclass(frozen=True)
class Traced:
    """A model without torch.

    Attributes
    ----------
    graph : dict
        JSON: ``input`` (name, dtype, shape; the first size is None), ``parameters``
        (name in the graph, torch's name, shape), ``constants`` (name in the graph, key
        of :attr:`constants`), ``nodes`` (name, op, args, at) and ``output``.
    weights : dict
        Trainable parameters, float32, in the model's order.
    constants : dict
        Buffers and frozen parameters that the model reads.
    """

    graph: dict[str, Any]
    weights: dict[str, NDArray[np.float32]]
    constants: dict[str, NDArray[Any]]


def trace(
    model: nn.Module, example: torch.Tensor, allow_frozen_bn: bool = False
) -> Traced:
    """Return ``model`` as operators and arrays.

    Parameters
    ----------
    model : Module
        Takes a batch, returns a score per class. Its training mode is restored.
    example : Tensor, shape (rows, ...)
        Two rows or more; only type and shape count.
    allow_frozen_bn : bool
        Accept batch normalisation. Training then normalises by the batch, as in torch,
        but the running statistics keep their initial values and are never sent, so
        evaluation differs from torch.

    Raises
    ------
    ConfigError
        If torch cannot export the model, or for operators and parameters that cannot
        be translated; all of them are named, with the module they are in.
    """
    _check_modules(model, allow_frozen_bn)
    program = _exported(model, example)
    nodes = list(program.graph.nodes)
    _check_inplace(nodes)
    signature, state = program.graph_signature, program.state_dict
    known = {**state, **program.constants}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    parameters, constants, arrays = [], [], {}
    weights: dict[str, NDArray[np.float32]] = {}
    live = _live(nodes)
    for node in nodes:
        if node.op != "placeholder":
            continue
        key = _stored_name(signature, node.name)
        if key in trainable:
            weights[key] = _float32(key, known[key])
            parameters.append([node.name, key, list(weights[key].shape)])
        elif key is not None and node in live:
            constants.append([node.name, key])
            arrays[key] = known[key].detach().cpu().numpy().copy()
    [given] = [n for n in nodes if n.name in signature.user_inputs]
    [result] = signature.user_outputs
    graph = {
        "input": {
            "name": given.name,
            "dtype": str(example.dtype).removeprefix("torch."),
            "shape": [None, *example.shape[1:]],
        },
        "parameters": parameters,
        "constants": constants,
        "nodes": [_node(n) for n in nodes if n.op == "call_function" and n in live],
        "output": result,
    }
    if wrong := unsupported(graph):
        raise ConfigError(
            f"The model uses operators without a translation: {'; '.join(wrong)}."
        )
    return Traced(graph, weights, arrays)


def _check_modules(model: nn.Module, allow_frozen_bn: bool) -> None:
    frozen = [name for name, m in model.named_modules() if isinstance(m, _BATCH_NORM)]
    if frozen and not allow_frozen_bn:
        raise ConfigError(
            f"The model has batch normalisation ({', '.join(frozen)}): TensorFlow "
            "Federated does not aggregate its running statistics. Use nn.GroupNorm, or "
            "set tff.allow-frozen-bn = true: evaluation then uses the initial ones."
        )
    tied = sum(1 for _ in model.named_parameters(remove_duplicate=False))
    if tied != sum(1 for _ in model.named_parameters()):
        raise ConfigError(
            "The model shares a parameter between modules: not supported."
        )


def _exported(model: nn.Module, example: torch.Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    was_training = model.training
    model.train()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # export talks about its own internals
            return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # whatever the compiler of torch raises
        line = str(error).strip().split("\n")[0][:300]
        raise ConfigError(
            f"torch.export cannot capture the model: {type(error).__name__}: {line}"
        ) from error
    finally:
        model.train(was_training)


def _stored_name(signature: Any, name: str) -> str | None:
    for names in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        if name in names:
            return str(names[name])
    return None


def _float32(name: str, value: torch.Tensor) -> NDArray[np.float32]:
    if value.dtype != torch.float32:
        raise ConfigError(
            f"Parameter {name} is {value.dtype}: only float32 is supported."
        )
    return value.detach().cpu().numpy().copy()


def _live(nodes: list[Any]) -> set[Any]:
    """Return the nodes that the output needs."""
    found: set[Any] = set()
    todo = [node for node in nodes if node.op == "output"]
    while todo:
        for node in todo.pop().all_input_nodes:
            if node not in found:
                found.add(node)
                todo.append(node)
    return found


def _check_inplace(nodes: list[Any]) -> None:
    """Refuse a change in place that something else would see."""
    for node in nodes:
        name = _short(node)
        if node.op != "call_function" or not name.endswith("_") or "__" in name:
            continue
        [target] = node.all_input_nodes[:1]
        if target.op == "placeholder" and target.name.endswith("num_batches_tracked"):
            continue  # a counter that nothing reads
        while _short(target) in _VIEWS and len(target.users) == 1:
            [target] = target.all_input_nodes[:1]
        if (
            target.op == "placeholder"
            or len(target.users) > 1
            or _short(target) in _VIEWS
        ):
            raise ConfigError(
                f"{node.target} in {_place(node) or 'the model'} changes a tensor in "
                "place that is used elsewhere. Write x = x + y instead of x += y."
            )


def _short(node: Any) -> str:
    """Return an operator's name without namespace and overload."""
    if node.op != "call_function":
        return ""
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(packet.__name__)


def _node(node: Any) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # arithmetic on sizes, parts of a tuple
        names = ("x", "index" if node.target.__name__ == "getitem" else "other")
        arguments = dict(zip(names, node.args, strict=True))
        op = f"python.{node.target.__name__}"
    else:
        arguments = dict(_named(schema, node.args, node.kwargs))
        op = str(node.target)
    return {
        "name": node.name,
        "op": op,
        "args": {k: _argument(v) for k, v in arguments.items()},
        "at": _place(node),
    }


def _named(schema: Any, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
    """Yield every argument of a schema by name, with its default where not given."""
    for index, argument in enumerate(schema.arguments):
        if index < len(args):
            value = args[index]
        elif argument.name in kwargs:
            value = kwargs[argument.name]
        elif argument.has_default_value():
            value = argument.default_value
        else:
            continue
        name = "x" if argument.name in ("self", "input") else argument.name
        yield name, value


def _argument(value: Any) -> Any:
    """Return an argument as JSON."""
    if isinstance(value, torch.fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_argument(item) for item in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return None  # device, layout, memory format: no effect on values


def _place(node: Any) -> str:
    """Return the module that an operator belongs to, as ``layers.0 (Linear)``."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else kind.__name__
    return f"{path} ({name.rpartition('.')[2]})" if path else ""
