"""Executes a plan's pieces with plain TensorFlow; nothing of TFF is needed here.

A silo's process has about 700 MB with TensorFlow (1.1 GB with torch beside it), and
during ``work`` in memory of its own what :mod:`.batches` says of the silo's data.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .batches import Batches
from .execution import PieceFunction
from .leaves import Leaves
from .pieces import Program

__all__ = ["CoordinatorRuntime", "SiloRuntime"]

# Parts of a metric's place in TFF's structure that tell nothing.
_NOT_TOLD = ("metrics", "client_work")


class _Pieces:
    """The pieces of a program, each made when it is first called."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._made: dict[str, PieceFunction] = {}
        self._making = threading.Lock()

    def __getitem__(self, name: str) -> PieceFunction:
        with self._making:
            if name not in self._made:
                self._made[name] = PieceFunction(self.program.pieces[name], name)
            return self._made[name]


class SiloRuntime:
    """Executes ``work`` on a silo's own data.

    Parameters
    ----------
    program : Program
        Of a checked plan.
    """

    def __init__(self, program: Program) -> None:
        self._pieces = _Pieces(program)
        self._batches = Batches()

    def work(
        self,
        x: NDArray[np.generic],
        y: NDArray[np.generic],
        order: Sequence[NDArray[np.int64]] | None,
        batch_size: int,
        prepared: Sequence[NDArray[np.generic]],
        seconds: float | None = None,
    ) -> Leaves:
        """Return the leaves of ``work``.

        Parameters
        ----------
        x, y : arrays of n examples and labels
            Of the plan's dtypes.
        order : sequence of int64 arrays of shape (n,), or None
            The order of the examples in each pass; None is one pass in the order of
            the data. The last batch of a pass holds what is left; batches never span
            two passes.
        batch_size : int
        prepared : sequence of arrays
            The leaves of ``prepare``.
        seconds : float, optional
            Time limit. Making the batches counts, but is not cut off.

        Raises
        ------
        RunError
            As :class:`~.execution.PieceFunction`.
        """
        begin = time.monotonic()
        with self._batches.of(x, y, order, batch_size) as data:
            work = self._pieces["work"]
            if seconds is not None:
                seconds = max(0.0, seconds - (time.monotonic() - begin))
            return work(data, *prepared, seconds=seconds)


class CoordinatorRuntime:
    """Executes the server's pieces.

    A :class:`tff_bridge.strategy.Coordinator` for training, and a
    :class:`tff_bridge.analytics_server.Summing` for computations.

    Parameters
    ----------
    program : Program
        Of a checked plan.
    """

    def __init__(self, program: Program) -> None:
        self._pieces = _Pieces(program)
        self._metrics = [metric_name(leaf.path) for leaf in program.metrics]

    def init(self) -> Leaves:
        """Return the first state; the model's values are in the plan, not in it."""
        return self._pieces["init"]()

    def prepare(self, state: Leaves) -> Leaves:
        """Return what the silos get."""
        return self._pieces["prepare"](*state)

    def report(self, sums: Leaves) -> Leaves:
        """Return the report on the summed results of ``work``."""
        return self._pieces["report"](*sums)

    def update(self, state: Leaves, report: Leaves) -> tuple[Leaves, dict[str, float]]:
        """Return the next state and the round's metrics (scalars)."""
        found = self._pieces["update"](*state, *report)
        rest = found[len(state) :]
        metrics = {
            name: float(value)
            for name, value in zip(self._metrics, rest, strict=True)
            if value.shape == () and value.dtype.kind in "iuf"
        }
        return found[: len(state)], metrics

    def zero(self) -> Leaves:
        """Return the total of no silos."""
        return self._pieces["zero"]()

    def accumulate(self, total: Leaves, sent: Leaves) -> Leaves:
        """Return the total with one more silo."""
        return self._pieces["accumulate"](*total, *sent)

    def result(self, state: Leaves, total: Leaves) -> Leaves:
        """Return the result of a computation for the total of all silos."""
        found = self._pieces["update"](*state, *self.report(total))
        return found[len(state) :]


def metric_name(path: str) -> str:
    """Return a metric's name from its place in TFF's structure.

    >>> metric_name("metrics/client_work/train/loss")
    'train-loss'
    """
    parts = [part for part in path.replace(".", "/").split("/") if part]
    return "-".join(p.replace("_", "-") for p in parts if p not in _NOT_TOLD)
