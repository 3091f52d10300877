"""The memory of a strategy, for round records.

Our layers say what they must remember (``state``/``load_state``). Flower's strategies
keep it in plain attributes (FedAdam's moments, FedAvgM's velocity), so every attribute
that is a number, a text, an array or a collection of arrays is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from truststram.errors import CheckpointError
from truststram.techniques import stack

__all__ = ["restore", "snapshot"]


def snapshot(strategy: Strategy) -> list[dict[str, Any]]:
    """Return the state of every layer, outermost first."""
    return [
        {"name": type(layer).__name__, "state": _state(layer)}
        for layer in _recorded(strategy)
    ]


def restore(strategy: Strategy, states: list[dict[str, Any]]) -> None:
    """Put a snapshot back into a strategy that was built from the same job.

    Raises
    ------
    CheckpointError
        If the snapshot is of another stack of layers.
    """
    layers = _recorded(strategy)
    found = [state["name"] for state in states]
    expected = [type(layer).__name__ for layer in layers]
    if found != expected:
        raise CheckpointError(f"The record is of {found}, the job builds {expected}.")
    for layer, state in zip(layers, states, strict=True):
        if hasattr(layer, "load_state"):
            layer.load_state(state["state"])
        else:
            vars(layer).update(state["state"])


def _recorded(strategy: Strategy) -> list[Strategy]:
    return [x for x in stack.walk(strategy) if getattr(x, "recorded", True)]


def _state(layer: Strategy) -> dict[str, Any]:
    if hasattr(layer, "state"):
        return dict(layer.state())
    return {k: v for k, v in vars(layer).items() if _is_data(v)}


def _is_data(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(v, np.ndarray) for v in value.values())
    if isinstance(value, list):
        return all(isinstance(v, np.ndarray) for v in value)
    return value is None or isinstance(
        value, (bool, int, float, str, np.ndarray, ArrayRecord)
    )
