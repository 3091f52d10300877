"""Plain TensorFlow, and one piece of a plan as a function on arrays.

TensorFlow is imported when the first piece is made: 5 to 20 seconds. It is told to use
few threads before it starts, because a machine may hold many simulated silos, and torch
beside it.

A plan is code. Every :class:`~tff_bridge.plan.Plan` has been through
:func:`~tff_bridge.plan.read_plan`, which looks at each operator, those of library
functions included, before TensorFlow sees a graph. What no list of operators bounds is
how long a graph runs: every call has a time limit, the piece's own initialisation
included. Importing a graph has none; it takes time linear in the graph's bounded size.

Errors of TensorFlow hold values of tensors, which may be private data: their text goes
to this process's log and no further.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from logging import ERROR
from typing import Any, TypeVar

import numpy as np
from flwr.common.logger import log

from truststram.errors import ConfigError, RunError

from .leaves import Leaves
from .pieces import Piece

__all__ = ["PieceFunction", "guarded", "require_tensorflow", "tensorflow"]

# Threads in one operator: one, so that sums do not depend on the machine. Operators at
# the same time: those of several simulated silos.
WITHIN, AT_ONCE = 1, min(4, os.cpu_count() or 1)
# Seconds for one call, whatever the job says: no graph runs for ever.
MAX_SECONDS = 86_400.0

_importing = threading.Lock()
Result = TypeVar("Result")


def require_tensorflow(who: str) -> None:
    """Raise ConfigError if ``who`` could not execute a plan; imports nothing."""
    if find_spec("tensorflow") is None:
        raise ConfigError(
            f"tff.plan: {who} has no TensorFlow, which executes the plan: "
            "pip install 'truststram-fl[tff]'."
        )


def tensorflow() -> Any:
    """Return TensorFlow, imported once, with few threads and a quiet log."""
    with _importing:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        threads = tf.config.threading
        if threads.get_intra_op_parallelism_threads() == 0:
            try:
                threads.set_intra_op_parallelism_threads(WITHIN)
                threads.set_inter_op_parallelism_threads(AT_ONCE)
            except RuntimeError:
                pass  # this process used TensorFlow before: its threads are running
        return tf


class PieceFunction:
    """One piece of a plan as a function on numpy arrays.

    Parameters
    ----------
    piece : Piece
    name : str
        For error messages.

    Notes
    -----
    The piece's initialisation runs before every call, as TFF does.
    """

    def __init__(self, piece: Piece, name: str) -> None:
        self._name = name
        self._initialize: Callable[..., Any] | None = None
        tensorflow()
        guarded(name, lambda: self._load(piece))

    def __call__(self, *arguments: Any, seconds: float | None = None) -> Leaves:
        """Return the results for arrays (or a dataset's variant), in flat order.

        Raises
        ------
        RunError
            If TensorFlow cannot compute it, or not in ``seconds``.
        """
        limit = MAX_SECONDS if seconds is None else min(seconds, MAX_SECONDS)
        return guarded(self._name, lambda: self._run(arguments, limit), limit)

    def _load(self, piece: Piece) -> None:
        """Import the graph and cut out what is called."""
        tf = tensorflow()
        graph = tf.compat.v1.GraphDef.FromString(piece.graph)
        wrapped = tf.compat.v1.wrap_function(
            lambda: tf.compat.v1.import_graph_def(graph, name=""), []
        )
        tensor = wrapped.graph.get_tensor_by_name
        tokens = [tensor(piece.token)] if piece.token else []
        self._tokens = [tf.constant("")] * len(tokens)
        if piece.initialize:
            operation = wrapped.graph.get_operation_by_name(piece.initialize)
            self._initialize = wrapped.prune(tokens, [operation])
        inputs = [tensor(leaf.tensor) for leaf in piece.inputs]
        outputs = [tensor(leaf.tensor) for leaf in piece.outputs]
        self._function = wrapped.prune(inputs + tokens, outputs)

    def _run(self, arguments: Sequence[Any], seconds: float) -> Leaves:
        tf, end = tensorflow(), time.monotonic() + seconds
        given = [tf.constant(x) if isinstance(x, np.ndarray) else x for x in arguments]
        if self._initialize is not None:
            _in_time(self._initialize, self._tokens, seconds)
        left = max(0.0, end - time.monotonic())
        results = _in_time(self._flat, [*given, *self._tokens], left)
        return [np.asarray(x.numpy()) for x in results]

    def _flat(self, *tensors: Any) -> Sequence[Any]:
        """Call the graph.

        TensorFlow's public call first tries to bind arguments by name, and writes all
        their values into an error that it then drops: half of a small call's time.
        """
        function = self._function
        return function._call_flat(list(tensors), function.captured_inputs)  # type: ignore[no-any-return]  # untyped


def guarded(name: str, call: Callable[[], Result], seconds: float = 0.0) -> Result:
    """Return what ``call`` returns; of an error only the kind leaves this machine."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  # TensorFlow raises many kinds
        kind = type(error).__name__
        log(ERROR, "TensorFlow could not run %s: %s", name, error)
    # Outside the handler, so that the error has no context to be printed.
    if kind == "CancelledError":
        raise RunError(f"tff.plan: {name} took more than {seconds:g} seconds")
    raise RunError(
        f"tff.plan: TensorFlow could not run {name} ({kind}); what it says is in the "
        "log of this machine"
    )


def _in_time(function: Any, arguments: Sequence[Any], seconds: float) -> Sequence[Any]:
    """Call a concrete function, which is cancelled after ``seconds``."""
    from tensorflow.python.eager.cancellation import CancellationManager

    manager = CancellationManager()
    timer = threading.Timer(seconds, manager.start_cancel)
    timer.daemon = True
    timer.start()
    try:
        return manager.get_cancelable_function(function)(*arguments)  # type: ignore[no-any-return]  # untyped
    finally:
        timer.cancel()
