"""Plans over Flower against TensorFlow Federated's own executor, and torch.

Goals: the model after three rounds is TFF's to 1e-6 and that of the torch job to 1e-5;
a warm round takes at most 1.5 times TFF's; a plan of an MLP has at most 100 kB; the
accuracy on the hospitals of breast-cancer is the torch job's within 0.2 points.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._report import Line, line, main, progress
from benchmarks._tff_silos import NAME, SILOS, Silos, starting_from
from server_app.checkpoint import load_model
from tff_bridge import compiler
from tff_bridge.job import CrossSiloJob
from tff_bridge.plan import Plan
from tff_bridge.silo_data import Passes
from tff_bridge.subprocess_tree import run_bounded
from truststram.engine import run_local
from truststram.job import Job, Value
from truststram.result import RunResult
from truststram.rng import derive_seed
from truststram.task import Node
from truststram.tasks import register_task
from truststram.tasks.breast_cancer import BreastCancer

INPUTS = (
    "benchmarks/_tff_native.py",
    "tff_bridge/agreement.py",
    "tff_bridge/batches.py",
    "tff_bridge/classifier_tf.py",
    "tff_bridge/client.py",
    "tff_bridge/compile_plan.py",
    "tff_bridge/evaluation.py",
    "tff_bridge/evaluation_layer.py",
    "tff_bridge/execution.py",
    "tff_bridge/graphs_tf.py",
    "tff_bridge/leaves.py",
    "tff_bridge/runtime.py",
    "tff_bridge/silo_data.py",
    "tff_bridge/strategy.py",
    "tff_bridge/training.py",
)
# Rounds that are compared, and those before that warm up both executors.
COMPARED, FIRST = 3, 3
SEED = 1
SETTINGS: dict[str, Value] = {
    "train.local-epochs": 2,
    "train.batch-size": 16,
    "train.lr": 0.1,
}
NATIVE = Path(__file__).with_name("_tff_native.py")
LONGEST = 900.0
# TFF's executor uses all cores.
THREADS = os.cpu_count() or 1

Weights = Mapping[str, NDArray[Any]]


def lines(quick: bool) -> Iterator[Line]:
    """Yield all lines; with ``quick`` fewer rounds are timed."""
    rounds = FIRST + (5 if quick else 30)
    register_task(NAME, Silos)
    job = CrossSiloJob.of({"task.name": NAME, **SETTINGS})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        progress("tff_bridge: compile")
        begin = time.perf_counter()
        plan = compiler.compile_job(job, time_limit=LONGEST)
        yield line(
            "compile the MLP's job",
            time.perf_counter() - begin,
            unit="s",
            note="trace, TFF's environment from uv's cache, training and evaluation; "
            f"built with {plan.built_with}",
        )
        yield line(
            "plan of the MLP",
            len(plan.to_bytes()) / 1000,
            goal="ours <= 100",
            unit="kB",
            note=f"{sum(w.size for w in plan.weights.values()):,} weights included",
        )
        plan.write(place / "job.tffplan")
        yield from rounds_of(job, plan, place, rounds)
    yield from hospitals()


def rounds_of(
    job: CrossSiloJob, plan: Plan, folder: Path, rounds: int
) -> Iterator[Line]:
    """Yield how models, times and bytes of rounds compare."""
    register_task(NAME, starting_from(Silos, plan.weights))
    keys: dict[str, Value] = {**SETTINGS, "task.name": NAME, "round.evaluate": "none"}
    with_plan = {**keys, "tff.plan": str(folder / "job.tffplan")}
    ours, torch, native, short = [], [], [], {}
    progress("tff_bridge: three rounds of each")
    for name, config in (("plan", with_plan), ("torch", keys)):
        run(folder, name, {**config, "train.rounds": COMPARED})
        short[name] = weights(folder / name / "model.safetensors")
    for number in range(2):
        progress(f"tff_bridge: rounds, ours, torch, native; {number + 1} of 2")
        long = {"train.rounds": rounds}
        ours.append(run(folder, f"plan-{number}", {**with_plan, **long}))
        torch.append(run(folder, f"torch-{number}", {**keys, **long}))
        native.append(native_rounds(job, plan, folder, rounds))
    expected = {
        name: native[0][f"{COMPARED}-{i}"] for i, name in enumerate(plan.parameters)
    }
    about = f"max |difference| of weights after {COMPARED} rounds, silos of {SILOS}"
    yield line(
        "plan over Flower and TFF's executor",
        difference(short["plan"], expected),
        goal="ours <= 1e-6",
        seeds=[SEED],
        note=about,
    )
    yield line(
        "plan over Flower and the torch job",
        difference(short["plan"], short["torch"]),
        goal="ours <= 1e-5",
        seeds=[SEED],
        note=about,
    )
    timed = "median warm round of the better of two runs in turns"
    yield line(
        "round of the plan",
        1000 * warm(ours),
        1000 * min(statistics.median(x["seconds"][FIRST:]) for x in native),
        goal="ratio <= 1.5",
        unit="ms",
        note=f"{timed}; ours: messages, guard, mean and record of the round included, "
        f"LocalGrid, {THREADS} threads; peer: process.next with TFF's native executor",
    )
    yield line(
        "round of the plan, beside torch",
        1000 * warm(ours),
        1000 * warm(torch),
        unit="ms",
        note=f"{timed}; peer: the same job with torch silos",
    )
    for name, up in (("sent by silos", True), ("sent to silos", False)):
        bytes_of = [
            (r.rounds[-1].bytes_up if up else r.rounds[-1].bytes_down) / 1000
            for r in (ours[0], torch[0])
        ]
        yield line(
            f"{name} in a round",
            *bytes_of,
            unit="kB",
            note=f"{len(SILOS)} silos; peer: the torch job",
        )
    yield line(
        "memory of a process with server and silos",
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        unit="MiB",
        note="peak resident; torch and TensorFlow in one process",
    )


def hospitals() -> Iterator[Line]:
    """Yield what a plan and the torch job find on breast-cancer, server and silos."""
    progress("tff_bridge: hospitals")
    job = CrossSiloJob.of({"task.name": "breast-cancer", **SETTINGS})
    plan = compiler.compile_job(job, time_limit=LONGEST)
    register_task("breast-cancer", starting_from(BreastCancer, plan.weights))
    with tempfile.TemporaryDirectory() as folder:
        plan.write(Path(folder) / "job.tffplan")
        keys: dict[str, Value] = {
            **SETTINGS,
            "task.name": "breast-cancer",
            "round.evaluate": "both",
        }
        found, rounds = {}, []
        for name, more in (
            ("torch", {}),
            ("plan", {"tff.plan": str(Path(folder) / "job.tffplan")}),
        ):
            result = run(Path(folder), name, {**keys, **more, "train.rounds": 20})
            found[name] = 100 * finite(result.metrics["accuracy"])
            rounds.append([r.metrics for r in result.rounds])
    yield line(
        "accuracy on breast-cancer: difference to torch",
        abs(found["plan"] - found["torch"]),
        goal="ours <= 0.2",
        unit="points",
        seeds=[SEED],
        note=f"20 rounds, 4 hospitals; plan {found['plan']:.2f} %, torch "
        f"{found['torch']:.2f} %",
    )
    yield line(
        "evaluation by the hospitals: difference to torch",
        max(
            abs(finite(ours[name]) - finite(theirs[name]))
            for theirs, ours in zip(*rounds, strict=True)
            for name in ("client-accuracy", "client-loss")
        ),
        goal="ours <= 1e-6",
        seeds=[SEED],
        note="accuracy and loss on what they hold out, worst of 20 rounds; federated "
        "evaluation of the plan, and torch",
    )


def finite(metric: float | None) -> float:
    """Return a metric that must be there."""
    if metric is None:  # not finite
        raise RuntimeError("a model's accuracy or loss is not finite")
    return float(metric)


def run(folder: Path, name: str, config: Mapping[str, Value]) -> RunResult:
    """Return a finished run in this process."""
    job = Job.of({**config, "run.dir": str(folder), "run.id": name, "run.seed": SEED})
    run_local(job, len(SILOS), THREADS)
    return RunResult.read(folder / name)


def native_rounds(
    job: CrossSiloJob, plan: Plan, folder: Path, rounds: int
) -> dict[str, NDArray[np.float64]]:
    """Return what TFF's executor makes of the same batches."""
    place = folder / "native"
    place.mkdir(exist_ok=True)
    compiler.write_input(job, compiler.traced_model(job), place)
    task, settings = Silos(), Job.of({"task.name": NAME, **SETTINGS})
    given: dict[str, NDArray[np.generic]] = {
        f"w{i}": w for i, w in enumerate(plan.weights.values())
    }
    for silo in range(len(SILOS)):
        data = task.train_data(settings, Node(partition=silo, partitions=len(SILOS)))
        given[f"x{silo}"], given[f"y{silo}"] = data.x.numpy(), data.y.numpy()
        seeds = [
            derive_seed(SEED, "train", str(silo), number + 1)
            for number in range(rounds)
        ]
        epochs = settings.train.local_epochs
        given[f"o{silo}"] = np.stack(
            [np.stack(Passes(s, len(data), epochs)) for s in seeds]
        )
    np.savez(place / "silos.npz", allow_pickle=False, **given)
    status, output = run_bounded(
        [*compiler.tff_python(), str(NATIVE), str(place)],
        environment=compiler.tff_environment(),
        time_limit=LONGEST,
    )
    if status != 0:
        raise RuntimeError(f"TFF's executor failed: {output[-2000:]}")
    return dict(np.load(place / "native.npz"))


def weights(path: Path) -> Weights:
    """Return the arrays of a saved model."""
    return {name: array.numpy() for name, array in load_model(path).items()}


def difference(a: Weights, b: Weights) -> float:
    """Return the largest difference of two models' weights."""
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def warm(runs: list[RunResult]) -> float:
    """Return the median warm round of the run that was disturbed least."""
    return min(
        statistics.median(r.seconds for r in found.rounds[FIRST:]) for found in runs
    )


if __name__ == "__main__":
    main(__doc__, lines)
