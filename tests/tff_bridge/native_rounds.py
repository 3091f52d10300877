# /// script
# requires-python = "==3.11.*"
# dependencies = ["tensorflow-federated==0.87.0"]
# [tool.uv]
# override-dependencies = ["jax==0.4.13", "jaxlib==0.4.13"]
# ///
"""In the compiler's environment: compile jobs, and run them on TFF's own executor.

Run by ``test_golden.py`` as ``native_rounds.py FOLDER...``; each folder has ``in``
(what the compiler reads, the initial weights and the silos' data) and gets ``out``
(what the compiler writes) and ``native.npz`` (the model after each round).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from tff_bridge import compile_plan

PR_SET_PDEATHSIG = 1
CHOSEN = []


def let_workers_die_with_us():
    """TFF starts an executor and leaves it behind: let the system end it."""
    libc = ctypes.CDLL(None)

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            def die():
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

            super().__init__(*arguments, **options, preexec_fn=die)

    subprocess.Popen = Popen


def executes(aggregator):
    """Choose the executor: TFF's usual one has no secure sum; another adds in clear.

    Once for jobs that follow each other: setting the second one again would wait for
    ever.
    """
    backends = compile_plan.tff.backends
    setters = {
        False: backends.native.set_sync_local_cpp_execution_context,
        True: backends.test.set_sync_test_cpp_execution_context,
    }
    setter = setters[aggregator == "secure"]
    if CHOSEN[-1:] != [setter]:
        setter()
        CHOSEN.append(setter)


def rounds(source, target):
    tf = compile_plan.tf
    spec = json.loads((source / "spec.json").read_text())
    executes(spec["tff.aggregator"])
    given = dict(np.load(source / "silos.npz"))
    weights = [given[f"w{i}"] for i in range(int(given["weights"]))]
    graph, constants = compile_plan.traced(source)
    clear = spec["tff.aggregator"] != "dp"
    model = compile_plan.functional_model(graph, constants, weights, metrics=clear)
    process = compile_plan.learning_process(spec, model)
    size, epochs = spec["train.batch-size"], spec["train.local-epochs"]
    data = []
    for i in range(int(given["silos"])):
        silo = tf.data.Dataset.from_tensor_slices((given[f"x{i}"], given[f"y{i}"]))
        data.append(silo.batch(size).repeat(epochs))
    state, found = process.initialize(), {}
    for number in range(1, int(given["rounds"]) + 1):
        state = process.next(state, data).state
        for i, array in enumerate(process.get_model_weights(state).trainable):
            found[f"{number}-{i}"] = array
    if clear:
        for name, value in evaluated(model, process.get_model_weights(state), data):
            found[f"evaluation-{name}"] = value
    np.savez(target, **found)


def evaluated(model, weights, data):
    """Return the metrics that federated evaluation makes of the last model."""
    process = compile_plan.tff.learning.algorithms.build_fed_eval(model)
    state = process.set_model_weights(process.initialize(), weights)
    metrics = process.next(state, data).metrics
    return metrics["client_work"]["eval"]["current_round_metrics"].items()


if __name__ == "__main__":
    let_workers_die_with_us()
    for folder in map(Path, sys.argv[1:]):
        (folder / "out").mkdir()
        compile_plan.main(folder / "in", folder / "out")
        rounds(folder / "in", folder / "native.npz")
    # Nothing of TFF's exit handlers is needed, and they may wait for the executor.
    sys.stdout.flush()
    os._exit(0)
