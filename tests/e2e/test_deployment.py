"""A real SuperLink with three SuperNodes on loopback, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from truststram.result import RunResult

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Federation:
    """Starts Flower's processes in a folder and ends each of them by its pid."""

    # How the SuperLink, the SuperNodes and `flwr run` connect.
    link_security: tuple[object, ...] = ("--insecure",)
    node_security: tuple[object, ...] = ("--insecure",)
    user_security = "insecure = true"

    def __init__(self, folder: Path, repo: Path):
        self.folder, self.repo, self.port = folder, repo, free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("FLWR_")},
            # Flower starts its own helpers by name.
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def start(self, name: str, *command: object) -> subprocess.Popen[bytes]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / str(command[0])), *map(str, command[1:])],
                cwd=home,
                env={**self.env, "FLWR_HOME": str(home)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def superlink(self):
        command = ("flower-superlink", *self.link_security, "--host", "127.0.0.1")
        self.start("link", *command, "--port", self.port, "--isolation", "subprocess")
        wait(self.is_healthy, 60)

    def is_healthy(self) -> bool:
        address = f"http://127.0.0.1:{self.port}/health"
        return urllib.request.urlopen(address, timeout=1).status == 200

    def supernode(self, number: int, config: str, *more: object):
        command = ("flower-supernode", *self.node_security, *more, "--superlink")
        return self.start(
            f"node{number}",
            *(*command, f"127.0.0.1:{self.port}"),
            *("--port", free_port(), "--isolation", "subprocess"),
            *("--node-config", config),
        )

    def submit(self, config: str) -> subprocess.CompletedProcess[str]:
        return self.flwr(
            *("run", self.repo, "here", "--stream", "--run-config", config)
        )

    def flwr(self, *command: object) -> subprocess.CompletedProcess[str]:
        home = self.folder / "user"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.port}"\n{self.user_security}\n'
        )
        return subprocess.run(
            [str(BIN / "flwr"), *map(str, command)],
            cwd=home,
            env={**self.env, "FLWR_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=540,
        )

    def close(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):  # nobody listens yet
            if condition():
                return
        assert time.monotonic() < end, "not in time"
        time.sleep(0.3)


@pytest.fixture
def federation(tmp_path):
    found = Federation(tmp_path, Path(__file__).resolve().parents[2])
    yield found
    found.close()


def test_three_supernodes_train_and_one_that_errs_is_dropped(federation, tmp_path):
    federation.superlink()
    for number in range(3):
        code = "" if number else ' task-code="digits=no.such.module:Task"'
        federation.supernode(
            number, f"partition-id={number} num-partitions=3 {code}".strip()
        )
    runs = tmp_path / "runs"
    config = (
        f'train.rounds=2 train.local-epochs=1 round.min-nodes=3 run.dir="{runs}" '
        'run.id="deployed"'
    )
    done = federation.submit(config)
    events = runs / "deployed" / "events.jsonl"
    assert events.exists(), done.stdout[-4000:] + done.stderr[-2000:]
    result = RunResult.read(runs / "deployed")
    assert result.ok, result.reason
    assert result.nodes == 3
    for row in result.rounds:
        assert (row.cohort, row.replies, row.codes) == (3, 2, {"client-error": 1})
    assert result.metrics["accuracy"] > 0.2
    lines = [json.loads(x) for x in events.read_text().splitlines()]
    names = {tuple(e["cohort"]) for e in lines if e["kind"] == "round-started"}
    assert len(names) == 1  # stable: the node ids, in the same order
    assert all(name.isdecimal() and int(name) > 1000 for name in names.pop())
