"""A silo's data as a plan takes them: arrays, and the order of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truststram.errors import DataError

from .manifest import Leaf

__all__ = ["arrays_of", "order_of"]


def order_of(seed: int, examples: int, epochs: int) -> NDArray[np.int64]:
    """Return the order of the examples in every pass, shape (epochs, examples).

    The same as :class:`truststram.tasks.torch_task.TorchTask` draws from this seed, so
    that torch and TensorFlow silos see the same batches.
    """
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(examples) for _ in range(epochs)])


def arrays_of(
    data: Any, element: Sequence[Leaf]
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Return the examples and labels as the plan takes them.

    Parameters
    ----------
    data : object
        With tensors or arrays ``x`` and ``y`` (such as
        :class:`truststram.tasks.torch_task.Examples`), or a sequence of (x, y) pairs.
    element : sequence of two Leaf
        The components of the plan's batches.

    Raises
    ------
    DataError
        If the data have another form, or examples of another shape than the plan's.
    """
    if hasattr(data, "x") and hasattr(data, "y"):
        x, y = np.asarray(data.x), np.asarray(data.y)
    else:
        try:
            pairs = [data[i] for i in range(len(data))]
            x, y = (np.stack([np.asarray(pair[k]) for pair in pairs]) for k in (0, 1))
        except Exception as error:
            raise DataError(
                "A plan needs data with arrays x and y, or a sequence of (x, y) pairs; "
                f"these are {type(data).__name__}."
            ) from error
    found = []
    for name, values, leaf in zip("xy", (x, y), element, strict=True):
        if values.shape[1:] != leaf.shape[1:]:
            raise DataError(
                f"The plan takes {name} of shape {leaf.shape[1:]} for an example, this "
                f"node's data have {values.shape[1:]}."
            )
        found.append(values.astype(leaf.dtype, copy=False))
    return found[0], found[1]
