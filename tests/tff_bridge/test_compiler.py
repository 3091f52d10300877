"""The compiler around TensorFlow Federated, with a stand-in for its environment."""

from __future__ import annotations

import os
import stat
import sys

import numpy as np
import pytest
from torch import nn

from tff_bridge import compiler
from tff_bridge.compiler import compile_job
from tff_bridge.job import CrossSiloJob, read_job
from tff_bridge.plan import read_plan
from truststram.errors import ConfigError, RunError
from truststram.rng import derive_seed
from truststram.tasks import register_task
from truststram.tasks.breast_cancer import BreastCancer
from truststram.tasks.torch_task import TorchTask

from .plans import BREAST_CANCER

JOB = read_job(BREAST_CANCER.with_suffix(".toml"))
# Writes what compile_plan.py would have written for the committed plan.
STAND_IN = """#!{python}
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
source, target = map(Path, sys.argv[2:4])
assert json.loads((source / "graph.json").read_text())["nodes"]
from tff_bridge.plan import read_plan
import tff_bridge.archive as archive
content = archive.unpack(Path({plan!r}).read_bytes())
for name, data in content.items():
    if name.endswith(".pb"):
        (target / name.replace("/", "-")).write_bytes(data)
(target / "result.json").write_bytes(content["plan.json"])
with open({calls!r}, "a") as calls:
    calls.write("x")
"""


@pytest.fixture
def stand_in(tmp_path, root, monkeypatch):
    """Put a program in the place of TFF's Python; return where it counts its calls."""
    calls = tmp_path / "calls"

    def put(text=STAND_IN):
        program = tmp_path / "python"
        parts = {"python": sys.executable, "root": str(root), "calls": str(calls)}
        program.write_text(text.format(**parts, plan=str(BREAST_CANCER)))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(compiler.TFF_PYTHON, str(program))
        return calls

    return put


def test_what_comes_out_becomes_the_plan(stand_in):
    stand_in()
    plan = compile_job(JOB)
    assert plan.sha256 == read_plan(BREAST_CANCER).sha256


def test_a_plan_is_kept_by_what_it_depends_on(stand_in, tmp_path):
    calls, cache = stand_in(), tmp_path / "cache"
    first = compile_job(JOB, cache=cache)
    assert compile_job(JOB, cache=cache).sha256 == first.sha256
    assert calls.read_text() == "x"
    other = CrossSiloJob.of({"task.name": "breast-cancer", "train.lr": 0.5})
    compile_job(other, cache=cache)
    assert calls.read_text() == "xx"
    # A file that was cut off is made again.
    for kept in cache.iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert compile_job(JOB, cache=cache).sha256 == first.sha256
    assert calls.read_text() == "xxx"
    assert {path.suffix for path in cache.iterdir()} == {".tffplan"}


def test_the_error_of_tff_comes_in_one_line(stand_in):
    stand_in(
        "#!{python}\nraise ValueError('no such aggregator')\n# {root} {plan} {calls}\n"
    )
    with pytest.raises(ConfigError) as error:
        compile_job(JOB)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("ValueError: no such aggregator")


def test_the_time_limit_holds(stand_in):
    stand_in("#!{python}\nimport time; time.sleep(60)\n# {root} {plan} {calls}\n")
    with pytest.raises(RunError, match=r"did not end within 0\.5 s"):
        compile_job(JOB, time_limit=0.5)


def test_a_python_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setenv(compiler.TFF_PYTHON, "/no/such/python")
    with pytest.raises(ConfigError, match="TRUSTSTRAM_TFF_PYTHON"):
        compile_job(JOB)


def test_uv_runs_the_script_without_a_python_of_ones_own(monkeypatch):
    monkeypatch.delenv(compiler.TFF_PYTHON, raising=False)
    command = compiler.tff_python()
    assert os.path.basename(command[0]) == "uv"
    assert command[-1] == "--script"


def test_tensorflow_federated_gets_no_weights(tmp_path):
    compiler.write_input(JOB, compiler.traced_model(JOB), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("spec.json", "graph.json", "constants.npz"),
    }


def test_a_plan_starts_where_the_torch_job_starts():
    """The committed plan, and the run of its task under the same seed."""
    plan, job = read_plan(BREAST_CANCER), JOB.base
    start = BreastCancer().model(job, derive_seed(plan.job["run.seed"], "model"))
    state = start.state_dict()
    assert list(plan.weights) == list(state)
    for name, values in plan.weights.items():
        np.testing.assert_array_equal(values, state[name].numpy())


class NoTask:
    """Has what a task must have, but trains something else."""

    metrics = ("loss",)

    def model(self, job, seed): ...
    def train_data(self, job, node): ...
    def test_data(self, job, node): ...
    def train(self, model, data, job, seed): ...
    def evaluate(self, model, data, job): ...


class Blind(TorchTask):
    """A server without test data."""

    def model(self, job, seed):
        return nn.Linear(7, 3)

    def train_data(self, job, node): ...
    def test_data(self, job, node): ...


class Keras(Blind):
    """A model of another library."""

    def model(self, job, seed):
        return object()


@pytest.mark.parametrize(
    ("task", "words"),
    [(NoTask, "TorchTask"), (Blind, "tff.input-shape"), (Keras, "Keras")],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_tasks_that_cannot_be_compiled_are_told(task, words):
    register_task("odd", task)
    with pytest.raises(ConfigError, match=words):
        compile_job(CrossSiloJob.of({"task.name": "odd"}))


def test_the_shape_of_an_example_can_be_given():
    register_task("odd", Blind)
    job = CrossSiloJob.of({"task.name": "odd", "tff.input-shape": "7"})
    assert compiler.traced_model(job).graph["input"]["shape"] == [None, 7]


def test_a_computation_that_is_missing_is_told(tmp_path):
    job = CrossSiloJob.of({"tff.computation": str(tmp_path / "none.py")})
    with pytest.raises(ConfigError, match=r"none\.py"):
        compile_job(job)


def test_all_scripts_of_tffs_environment_ask_for_the_same_one(root):
    def header(path):
        lines = (root / path).read_text().splitlines()
        return lines[: lines.index("# ///") + 1]

    pinned = header("tff_bridge/compile_plan.py")
    assert '# requires-python = "==3.11.*"' in pinned
    assert '# dependencies = ["tensorflow-federated==0.87.0"]' in pinned
    timed = [p for p in root.glob("benchmarks/_tff_*.py") if "# ///" in p.read_text()]
    for path in ("tests/tff_bridge/native_rounds.py", *timed):
        assert header(path) == pinned, path
