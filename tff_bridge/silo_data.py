"""A silo's data as a plan takes them: arrays, and the order of their rows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truststram.errors import DataError

from .manifest import Leaf

__all__ = ["Passes", "arrays_of"]


class Passes(Sequence[NDArray[np.int64]]):
    """The order of the examples in every pass, drawn when it is asked for.

    The same as :class:`truststram.tasks.torch_task.TorchTask` draws from this seed, so
    that torch and TensorFlow silos see the same batches. One pass is in memory. Threads
    may ask at once, as TensorFlow's do when a plan reads the data twice.

    Parameters
    ----------
    seed, examples, passes : int
    """

    def __init__(self, seed: int, examples: int, passes: int) -> None:
        self._seed, self._examples, self._passes = seed, examples, passes
        self._drawing = threading.Lock()
        self._restart()

    def __len__(self) -> int:
        """Return the number of passes."""
        return self._passes

    def __getitem__(self, i: int) -> NDArray[np.int64]:  # type: ignore[override]  # no slices
        """Return the order of pass ``i``, int64 of shape (examples,).

        Passes are asked for one after the other; going back draws again from the first.
        """
        if not 0 <= i < self._passes:
            raise IndexError(i)
        with self._drawing:
            if i < self._drawn - 1:
                self._restart()
            while self._drawn <= i:
                self._rows = self._rng.permutation(self._examples)
                self._drawn += 1
            return self._rows

    def _restart(self) -> None:
        self._rng, self._drawn = np.random.default_rng(self._seed), 0


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
