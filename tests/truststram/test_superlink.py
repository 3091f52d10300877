"""The SuperLink of a local run: nothing leaks into it, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

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
    assert not {"PYTHONPATH", "RAY_ADDRESS", "FLWR_LOG_LEVEL"} & set(environment)
    assert environment["no_proxy"] == "example.org,127.0.0.1,localhost"
    assert environment["FLWR_HOME"] == str(tmp_path)


def test_ray_gets_a_short_folder(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/var/a-long-path/as-on-macos/T")
    link = LocalSuperLink(2)
    assert str(link.home).startswith("/tmp/ts-")
    assert link.home.stat().st_mode & 0o777 == 0o700
    link.close()
