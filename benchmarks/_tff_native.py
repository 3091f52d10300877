# /// script
# requires-python = "==3.11.*"
# dependencies = ["tensorflow-federated==0.87.0"]
# [tool.uv]
# override-dependencies = ["jax==0.4.13", "jaxlib==0.4.13"]
# ///
"""In TensorFlow Federated's environment: time the rounds of its own executor.

``_tff_native.py FOLDER``: the folder has what the compiler reads (``spec.json``,
``graph.json``, ``constants.npz``) and ``silos.npz``: initial weights ``w<i>``, data
``x<k>`` and ``y<k>`` of silo k, and the order of its examples in each round and pass,
``o<k>`` of shape (rounds, passes, examples). It gets ``native.npz``: seconds of each
round, and the model after each, ``<round>-<i>``.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from tff_bridge import compile_plan

PR_SET_PDEATHSIG = 1


def let_the_executor_die_with_us() -> None:
    """TFF starts a process and leaves it behind: let the system end it."""
    libc = ctypes.CDLL(None)

    made: Any = subprocess.Popen.__init__

    def with_death_signal(self: Any, *arguments: Any, **options: Any) -> None:
        die = functools.partial(libc.prctl, PR_SET_PDEATHSIG, signal.SIGKILL)
        made(self, *arguments, **{**options, "preexec_fn": die})

    subprocess.Popen.__init__ = with_death_signal  # type: ignore[method-assign]  # ends with us


def main(folder: Path) -> None:
    """Run all rounds and write what came of them."""
    import tensorflow as tf
    import tensorflow_federated as tff

    tff.backends.native.set_sync_local_cpp_execution_context()
    spec = json.loads((folder / "spec.json").read_text())
    given = dict(np.load(folder / "silos.npz"))
    count = sum(name.startswith("w") for name in given)
    weights = [given[f"w{i}"] for i in range(count)]
    graph, constants = compile_plan.traced(folder)
    model = compile_plan.functional_model(graph, constants, weights, metrics=True)
    process = compile_plan.learning_process(spec, model)
    silos = sum(name.startswith("x") for name in given)
    size = spec["train.batch-size"]

    def data(silo: int, number: int) -> Any:
        found = None
        for rows in given[f"o{silo}"][number]:
            pair = (given[f"x{silo}"][rows], given[f"y{silo}"][rows])
            one = tf.data.Dataset.from_tensor_slices(pair).batch(size)
            found = one if found is None else found.concatenate(one)
        return found

    state, seconds, models = process.initialize(), [], {}
    for number in range(len(given["o0"])):
        begin = time.perf_counter()
        output = process.next(state, [data(k, number) for k in range(silos)])
        state = output.state
        seconds.append(time.perf_counter() - begin)
        for i, array in enumerate(process.get_model_weights(state).trainable):
            models[f"{number + 1}-{i}"] = array
    np.savez(folder / "native.npz", seconds=np.array(seconds), **models)


if __name__ == "__main__":
    let_the_executor_die_with_us()
    main(Path(sys.argv[1]))
    # TFF's exit handlers may wait for its executor.
    sys.stdout.flush()
    os._exit(0)
