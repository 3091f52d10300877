"""The SuperLink of a local run: nothing leaks into it, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from truststram import _processes
from truststram.errors import RunError
from truststram.superlink import LocalSuperLink, processes_of


def sleeper(link: LocalSuperLink, *, marked: bool) -> subprocess.Popen[bytes]:
    """Start a process that ignores SIGTERM, marked by environment or folder."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **({"FLWR_HOME": str(link.home)} if marked else {})},
        cwd=None if marked else link.home / "work",
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


def test_a_closed_superlink_leaves_no_process_and_no_folder(monkeypatch):
    monkeypatch.setattr(_processes, "GRACE", 0.3)
    link, other = LocalSuperLink(2), LocalSuperLink(2)
    mine = [sleeper(link, marked=True), sleeper(link, marked=False)]
    foreign = sleeper(other, marked=True)
    assert {p.pid for p in processes_of(link.home)} == {p.pid for p in mine}
    link.close()
    link.close()
    assert [p.wait(5) for p in mine] == [-signal.SIGKILL] * 2
    assert not link.home.exists()
    assert foreign.poll() is None
    other.close()
    assert foreign.wait(5) == -signal.SIGKILL


def test_a_superlink_that_does_not_start_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nprintf 'no \\033[91msuch\\033[0m option'; exit 2\n")
    broken.chmod(0o700)
    monkeypatch.setattr(_processes, "_installed", lambda program: str(broken))
    link = LocalSuperLink(2)
    with pytest.raises(RunError, match="no such option"), link:
        pass  # entering fails
    assert not link.home.exists()


def test_nothing_leaks_into_flowers_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "/some/checkout")
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:1")
    monkeypatch.setenv("FLWR_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("no_proxy", "example.org")
    environment = _processes._environment(tmp_path)
    assert not {"RAY_ADDRESS", "FLWR_LOG_LEVEL"} & set(environment)
    [module] = Path(environment["PYTHONPATH"]).glob("[!_]*")
    assert module.name == "sitecustomize.py"
    assert environment["no_proxy"] == "example.org,127.0.0.1,localhost"
    assert environment["FLWR_HOME"] == str(tmp_path)


def started(code: str, folder: Path, *paths: Path) -> str:
    """Return what a Python prints that starts like one of a local simulation."""
    environment = _processes._environment(folder)
    path = os.pathsep.join(map(str, [environment["PYTHONPATH"], *paths]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_flowers_simulation_does_not_import_tensorflow(tmp_path):
    """It takes seconds in every process; the app can import it all the same."""
    code = """
import sys
from importlib.util import find_spec
from flwr.server.superlink.fleet.vce.backend import raybackend
print("tensorflow" in sys.modules, find_spec("tensorflow") is None)
raybackend.enable_tf_gpu_growth()
"""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        started(code, tmp_path)
    assert caught.value.stdout == "False False\n"
    assert "TensorFlow's GPU growth is no option" in caught.value.stderr


def test_a_machines_own_sitecustomize_runs_as_well(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.mine = 7")
    assert started("import sys; print(sys.mine)", tmp_path, tmp_path) == "7\n"


def test_ray_gets_a_short_folder(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/var/a-long-path/as-on-macos/T")
    link = LocalSuperLink(2)
    assert str(link.home).startswith("/tmp/ts-")
    assert link.home.stat().st_mode & 0o777 == 0o700
    link.close()
