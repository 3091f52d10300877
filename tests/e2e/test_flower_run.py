"""Real runs on Flower's simulation: the result is told truly, and nothing survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from truststram.result import RunResult
from truststram.superlink import LocalSuperLink, processes_of

MARK = "TRUSTSTRAM_TEST_MARK"
# Seconds. A run takes half a minute, nearly all of it for processes that begin and
# import torch: on a machine with other work, some minutes.
LIMIT = 400
JOB = ["-c", "train.rounds=2", "-c", "train.local-epochs=1", "-c", "run.id=it"]


class Machine:
    """Starts command lines and knows every process that came of them."""

    def __init__(self) -> None:
        # Short, because Ray puts sockets below it.
        self.tmp = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
        self.mark = uuid.uuid4().hex

    def start(self, root: Path, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
        """Start ``truststram`` of the checkout in ``root``."""
        cwd.mkdir(parents=True, exist_ok=True)
        variables = {"PYTHONPATH": str(root), "TMPDIR": str(self.tmp), MARK: self.mark}
        return subprocess.Popen(
            [sys.executable, "-m", "truststram.cli", *arguments],
            cwd=cwd,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def survivors(self) -> list[psutil.Process]:
        """Return living processes that were started by ours, however indirectly."""
        found = {process.pid: process for process in processes_of(self.tmp)}
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    found[process.pid] = process
            except (psutil.Error, OSError):
                continue  # it ended, or is somebody else's
        return list(found.values())


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    left, folders = machine.survivors(), list(machine.tmp.glob("ts-*"))
    for process in left:
        process.kill()
    shutil.rmtree(machine.tmp)
    assert left == []
    assert folders == []


@pytest.fixture
def checkout(root, tmp_path):
    """Return a function that copies the app's files to a folder of its own."""

    def copy(name: str) -> Path:
        project = tomllib.loads((root / "pyproject.toml").read_text())
        target = tmp_path / name
        patterns = [*project["tool"]["flwr"]["app"]["fab-include"], "pyproject.toml"]
        for source in (
            s for pattern in patterns for s in root.glob(pattern.lstrip("/"))
        ):
            copied = target / source.relative_to(root)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copied)
        return target

    return copy


def flower(*arguments: str) -> list[str]:
    return ["run", "--engine", "flower", "--nodes", "4", *JOB, *arguments]


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_job_runs_on_flower(machine, checkout, tmp_path):
    root = checkout("app")
    # Flower rewrites a pyproject.toml that has this old table.
    append(
        root / "pyproject.toml",
        '\n[tool.flwr.federations]\ndefault = "old"\n'
        '[tool.flwr.federations.old]\naddress = "127.0.0.1:1"\ninsecure = true\n',
    )
    before = (root / "pyproject.toml").read_bytes()
    code, out, err = finished(machine.start(root, *flower(), cwd=tmp_path))
    assert code == 0, err
    folder = tmp_path / "runs" / "it"
    result = RunResult.read(folder)
    assert result.ok
    assert result.nodes == 4
    assert [r.replies for r in result.rounds] == [4, 4]
    assert result.metrics
    assert "round 2/2" in err
    assert str(folder) in out
    report = json.loads((folder / "report.json").read_text())
    assert report == json.loads(json.dumps(result.report()))
    assert (folder / "model.safetensors").stat().st_size > 0
    assert (folder / "curves.png").stat().st_size > 0
    assert (root / "pyproject.toml").read_bytes() == before


def test_two_superlinks_at_once(machine, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(machine.tmp))
    with LocalSuperLink(2) as one, LocalSuperLink(2) as two:
        configs = {(link.home / "config.toml").read_text() for link in (one, two)}
        assert len(configs) == 2
        pids = [{p.pid for p in processes_of(link.home)} for link in (one, two)]
        assert pids[0]
        assert pids[1]
        assert not pids[0] & pids[1]
    assert machine.survivors() == []


def test_an_unknown_key_starts_nothing(machine, root, tmp_path):
    begin = time.monotonic()
    process = machine.start(root, *flower("-c", "train.round=2"), cwd=tmp_path)
    code, _, err = finished(process)
    assert code == 2
    assert err == "Unknown key train.round. Did you mean train.rounds?\n"
    assert not (tmp_path / "runs").exists()
    assert time.monotonic() - begin < 10


@pytest.mark.slow
def test_a_server_that_raises_is_a_failed_run(machine, checkout, tmp_path):
    root = checkout("broken")
    append(
        root / "server_app/main.py",
        "\n\ndef serve(*_):\n    raise ValueError('server boom')\n",
    )
    code, out, err = finished(machine.start(root, *flower(), cwd=tmp_path))
    assert code == 1
    assert out == ""
    assert "server boom. See " in err.splitlines()[-1]
    assert "Traceback" not in err
    assert RunResult.read(tmp_path / "runs/it").status == "failed"


@pytest.mark.slow
def test_a_server_that_is_killed_is_a_failed_run(machine, checkout, tmp_path):
    # Flower notices after a minute without heartbeats.
    root = checkout("broken")
    append(
        root / "server_app/main.py",
        "\n\ndef serve(*_):\n    import os\n    os._exit(3)\n",
    )
    code, _, err = finished(machine.start(root, *flower(), cwd=tmp_path))
    assert code == 1
    assert "No heartbeat" in err
    assert RunResult.read(tmp_path / "runs/it").status == "failed"


@pytest.mark.slow
def test_a_run_without_one_working_client_fails(machine, checkout, tmp_path):
    root = checkout("broken")
    append(
        root / "truststram/tasks/digits.py",
        "\n\ndef _fail(*_):\n    raise RuntimeError('client boom')\n\n\n"
        "Digits.train = _fail\n",
    )
    job = flower("-c", "round.max-failed=1")
    code, _, err = finished(machine.start(root, *job, cwd=tmp_path))
    assert code == 1
    assert "No valid reply" in err
    result = RunResult.read(tmp_path / "runs/it")
    assert result.status == "failed"
    assert [r.replies for r in result.rounds] == [0]


@pytest.mark.slow
def test_two_checkouts_at_once_run_their_own_code(machine, checkout, tmp_path):
    names = ("red", "blue")
    for name in names:
        root = checkout(name)
        for part in ("client_app/main.py", "server_app/main.py"):
            mark = f"mark-{name}-{part[:6]}"
            append(root / part, f"\nprint('{mark}', __file__, flush=True)\n")
    running = [
        machine.start(tmp_path / name, *flower(), cwd=tmp_path / f"work-{name}")
        for name in names
    ]
    for name, process in zip(names, running, strict=True):
        code, _, err = finished(process)
        assert code == 0, err
        log = (tmp_path / f"work-{name}/runs/it/flower.log").read_text()
        marks = [line for line in log.splitlines() if "mark-" in line]
        assert any(f"mark-{name}-client" in line for line in marks)
        assert any(f"mark-{name}-server" in line for line in marks)
        assert all(f"mark-{name}-" in line and "/apps/" in line for line in marks)


@pytest.fixture
def endless(machine, root, tmp_path) -> subprocess.Popen[str]:
    """Start a run of a million rounds and return it after the first one."""
    job = flower("-c", "train.rounds=1000000", "-c", "run.checkpoint-every=1000")
    process = machine.start(root, *job, cwd=tmp_path)
    path = tmp_path / "runs/it/events.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or b'"round-finished"' not in path.read_bytes():
        assert time.monotonic() < deadline
        assert process.poll() is None, finished(process)
        time.sleep(0.2)
    return process


@pytest.mark.slow
def test_a_killed_run_stops_everything(machine, endless, tmp_path):
    endless.kill()
    endless.communicate()
    deadline = time.monotonic() + 30
    while machine.survivors():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    # Nobody was left to write an end: it can be resumed.
    events = (tmp_path / "runs/it/events.jsonl").read_bytes()
    assert b'"run-finished"' not in events


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_everything(endless, tmp_path, number):
    process, path = endless, tmp_path / "runs/it/events.jsonl"
    process.send_signal(number)
    code, _, err = finished(process)
    assert code == 130
    assert "Traceback" not in err
    assert err.endswith("Stopped.\nrun.resume = it continues the run.\n")
    result = RunResult.read(path.parent)
    assert result.status == "stopped"
    assert json.loads((path.parent / "report.json").read_text())["status"] == "stopped"
