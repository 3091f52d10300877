"""Compile a cross-silo job into a plan: trace here, build in an environment apart.

TensorFlow Federated 0.87 cannot be installed beside Flower, so its part runs as one
process (:mod:`tff_bridge.compile_plan`) that ``uv run --script`` provisions from the
requirements written in the script, or in the environment whose Python
``TRUSTSTRAM_TFF_PYTHON`` names. Files go in, files come out; no socket, no daemon.

What comes out is checked like a plan from anywhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ConfigError, ProtocolError, RunError
from truststram.rng import derive_seed

from .checked_json import canonical_json
from .job import CrossSiloJob, shape_of
from .pieces import PIECES, Leaf, Piece, Program
from .plan import Plan, read_plan
from .subprocess_tree import run_bounded
from .trace import Traced, trace

__all__ = ["TFF_PYTHON", "compile_job", "tff_environment", "tff_python"]

TFF_PYTHON = "TRUSTSTRAM_TFF_PYTHON"
TIME_LIMIT = 900.0
_HERE = Path(__file__).resolve().parent
_SCRIPT = _HERE / "compile_plan.py"


def compile_job(
    job: CrossSiloJob,
    *,
    cache: Path | str | None = None,
    time_limit: float = TIME_LIMIT,
) -> Plan:
    """Return the plan of a job.

    Parameters
    ----------
    job : CrossSiloJob
    cache : path, optional
        A folder that keeps plans by the hash of all that they depend on; None: compile.
    time_limit : float
        Seconds for TensorFlow Federated, installation included.

    Raises
    ------
    ConfigError
        If the task, its model or the user's computation cannot be compiled.
    RunError
        If the environment cannot be made or the time limit has passed.
    """
    traced = None if job.tff.computation else traced_model(job)
    key = _key(job, traced)
    kept = None if cache is None else Path(cache) / f"{key}.tffplan"
    if kept is not None and kept.is_file():
        try:
            return read_plan(kept)
        except ProtocolError:
            kept.unlink()  # a file cut off; made again below
    with tempfile.TemporaryDirectory(prefix="truststram-tff-") as folder:
        plan = _compiled(job, traced, Path(folder), time_limit)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        plan.write(partial)
        partial.replace(kept)
    return plan


def traced_model(job: CrossSiloJob) -> Traced:
    """Return the model of a job's task, written down.

    Raises
    ------
    ConfigError
        If there is no such task, it does not train torch classifiers, or its model has
        no translation.
    """
    import torch

    from truststram.tasks import load_task
    from truststram.tasks.torch_task import TorchTask

    name = job.base.task.name
    task = load_task(name)
    if not isinstance(task, TorchTask):
        raise ConfigError(
            f"task.name = {name}: only subclasses of TorchTask are compiled."
        )
    # The same seed as a run's: the plan starts where the torch job would.
    model = task.model(job.base, derive_seed(job.base.run.seed, "model"))
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"task.name = {name}: its model is of {type(model).__module__}. Only torch "
            "models are compiled, no Keras models: write the model in torch."
        )
    if job.tff.input_shape:
        dtype = getattr(torch, job.tff.input_dtype)
        example = torch.zeros((2, *shape_of(job.tff.input_shape)), dtype=dtype)
    else:
        data = task.test_data(job.base, None)
        if data is None or not len(data):
            raise ConfigError(
                f"task.name = {name}: the server has no test data that shows the shape "
                "of an example. Set tff.input-shape, such as 1x28x28."
            )
        # Two different rows: a batch of one would be taken for a fixed size.
        example = torch.zeros((2, *data.x.shape[1:]), dtype=data.x.dtype)
    return trace(model, example, allow_frozen_bn=job.tff.allow_frozen_bn)


def _key(job: CrossSiloJob, traced: Traced | None) -> str:
    """Return the hash of everything that a plan depends on."""
    digest = hashlib.sha256(canonical_json(job.spec()))
    sources = [
        _SCRIPT,
        *sorted((_HERE / "ops_tf").glob("*.py")),
        *_HERE.glob("manifest.py"),
    ]
    if job.tff.computation:
        sources.append(Path(job.tff.computation))
    for source in sources:
        digest.update(hashlib.sha256(_read(source)).digest())
    if traced is not None:
        digest.update(hashlib.sha256(canonical_json(traced.graph)).digest())
        for arrays in (traced.weights, traced.constants):
            for name, array in arrays.items():
                digest.update(hashlib.sha256(name.encode() + array.tobytes()).digest())
    return digest.hexdigest()


def _compiled(
    job: CrossSiloJob, traced: Traced | None, folder: Path, time_limit: float
) -> Plan:
    source, target = folder / "in", folder / "out"
    source.mkdir()
    target.mkdir()
    write_input(job, traced, source)
    status, errors = run_bounded(
        [*tff_python(), str(_SCRIPT), str(source), str(target)],
        environment=tff_environment(),
        time_limit=time_limit,
    )
    if status != 0:
        raise ConfigError(
            f"TensorFlow Federated cannot compile this job: {_line(errors)}"
        )
    return _assembled(job, traced, target)


def write_input(job: CrossSiloJob, traced: Traced | None, folder: Path) -> None:
    """Write what ``compile_plan.py`` reads."""
    (folder / "spec.json").write_text(json.dumps(job.spec()))
    if traced is None:
        (folder / "computation.py").write_bytes(_read(Path(job.tff.computation)))
        return
    (folder / "graph.json").write_text(json.dumps(traced.graph))
    constants: Mapping[str, NDArray[Any]] = traced.constants
    np.savez(folder / "constants.npz", allow_pickle=False, **constants)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error


def tff_python() -> list[str]:
    """Return the command that runs a script in TensorFlow Federated's environment.

    Raises
    ------
    ConfigError
        If ``TRUSTSTRAM_TFF_PYTHON`` names no program.
    RunError
        If there is no uv.
    """
    if python := os.environ.get(TFF_PYTHON):
        if shutil.which(python) is None:
            raise ConfigError(f"{TFF_PYTHON} = {python}: there is no such program.")
        return [python]
    beside = shutil.which("uv", path=str(Path(sys.executable).parent))
    uv = beside or shutil.which("uv")
    if uv is None:
        raise RunError(
            "uv, which installs TensorFlow Federated for the compiler, was not found. "
            f"pip install uv, or name a Python that has it in {TFF_PYTHON}."
        )
    return [uv, "run", "--quiet", "--no-project", "--script"]


def tff_environment() -> dict[str, str]:
    """Return the environment variables of TensorFlow Federated's processes."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    inherited = {k: v for k, v in os.environ.items() if k not in left_out}
    # Sets are ordered by hash: the same job must give the same graph.
    return inherited | {"PYTHONHASHSEED": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}


def _line(errors: str) -> str:
    """Return the one line of a traceback or of uv's words that says what is wrong."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    raised = [x for x in lines if x.split(":")[0].endswith(("Error", "Exception"))]
    last = (raised or lines or ["it ended without a word"])[-1]
    return last[:400]


def _assembled(job: CrossSiloJob, traced: Traced | None, target: Path) -> Plan:
    result = json.loads((target / "result.json").read_text())
    programs = {
        name: _program(name, described, target)
        for name, described in result["programs"].items()
    }
    return Plan.of(
        job={**job.spec(), "sha256": job.sha256},
        built_with=result["built_with"],
        programs=programs,
        weights={} if traced is None else traced.weights,
        privacy=job.privacy,
    )


def _program(name: str, described: dict[str, Any], target: Path) -> Program:
    pieces = {}
    for piece in PIECES:
        made = described["pieces"][piece]
        pieces[piece] = Piece(
            inputs=tuple(_leaf(leaf) for leaf in made["inputs"]),
            outputs=tuple(_leaf(leaf) for leaf in made["outputs"]),
            initialize=made["initialize"],
            token=made["token"],
            graph=(target / f"{name}-{piece}.pb").read_bytes(),
        )
    return Program(
        pieces=pieces,
        data=described["data"],
        additive=described["additive"],
        parameters=tuple(described["parameters"]),
    )


def _leaf(raw: dict[str, Any]) -> Leaf:
    elements = tuple(_leaf(element) for element in raw.get("elements", ()))
    given = {**raw, "shape": tuple(raw["shape"]), "elements": elements}
    return Leaf(**given)
