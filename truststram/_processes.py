"""The processes of one SuperLink: start them, find them, let none survive.

Every process of Flower carries the SuperLink's folder, whose path is unique, as
``FLWR_HOME`` in its environment or as its working directory. That is how
:func:`processes_of` finds all of them, including those that Ray detached from their
parents.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from .errors import RunError

__all__ = [
    "has_children",
    "listens",
    "processes_of",
    "start",
    "start_guard",
    "stop_all",
    "terminable",
]

GRACE = 5.0


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in the block, as Ctrl-C does.

    Does nothing outside the main thread or where the program handles SIGTERM itself.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def start(
    home: Path, program: str, *arguments: str, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start one of Flower's programs as a process of ``home``.

    Raises
    ------
    RunError
        If the program is not installed.
    """
    # Its own session: Ctrl-C reaches us only, and we decide the order of the end.
    return subprocess.Popen(  # noqa: S603  # our own list, no shell
        [_installed(program), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=home / "work",
        env=_environment(home),
        start_new_session=True,
    )


def _installed(program: str) -> str:
    """Return the path of a program: beside this Python, else on the PATH."""
    beside = shutil.which(program, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(program)
    if found is None:
        raise RunError(
            f"{program} was found neither beside {sys.executable} nor on the PATH. "
            "Install it: pip install 'flwr[simulation]'."
        )
    return found


def _environment(home: Path) -> dict[str, str]:
    # A leaked PYTHONPATH would let workers import another checkout, a RAY_ADDRESS would
    # take them to somebody's cluster, a proxy would catch what goes to this machine.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "RAY_ADDRESS") and not name.startswith("FLWR_")
    }
    direct = [os.environ.get("no_proxy", ""), "127.0.0.1", "localhost"]
    no_proxy = ",".join(filter(None, direct))
    bin_dir = str(Path(sys.executable).parent)
    return inherited | {
        # Flower starts its helpers by name.
        "PATH": os.pathsep.join([bin_dir, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "no_proxy": no_proxy,
        "NO_PROXY": no_proxy,
        # Faster starts; see there.
        "PYTHONPATH": str(Path(__file__).resolve().parent / "_start"),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(home),
        # What is left there by who is stopped goes with the folder.
        "TMPDIR": str(home),
    }


def processes_of(home: Path) -> list[psutil.Process]:
    """Return this user's living processes that belong to the SuperLink in ``home``."""
    return [p for p in psutil.process_iter() if _belongs(p, home)]


def _belongs(process: psutil.Process, home: Path) -> bool:
    # The environment is lost where a process writes its title over it, as Ray's may:
    # then the working directory tells.
    try:
        if process.pid == os.getpid() or process.uids().real != os.getuid():
            return False
        if not _alive(process):
            return False
        with contextlib.suppress(psutil.AccessDenied, OSError):
            if process.environ().get("FLWR_HOME") == str(home):
                return True
        return Path(process.cwd()).is_relative_to(home)
    except (psutil.Error, OSError):
        return False


def has_children(pid: int) -> bool:
    """Return whether a process has a living child."""
    try:
        return any(map(_alive, psutil.Process(pid).children()))
    except psutil.Error:
        return False


def listens(pid: int, port: int) -> bool:
    """Return whether that very process listens on ``port``: not somebody else's."""
    try:
        sockets = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def stop_all(home: Path) -> None:
    """End all processes of ``home``: ask, wait, kill; look again until none is left."""
    asked: set[int] = set()
    begin = time.monotonic()
    while found := processes_of(home):
        waited = time.monotonic() - begin
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                if waited > GRACE:
                    process.kill()
                elif process.pid not in asked:
                    asked.add(process.pid)
                    process.terminate()
        if waited > 2 * GRACE:
            pids = ", ".join(str(p.pid) for p in found)
            warnings.warn(f"Flower processes do not end: {pids}", stacklevel=3)
            return
        time.sleep(0.1)


def start_guard(home: Path) -> subprocess.Popen[bytes]:
    """Start a process that stops all and removes ``home`` if this process is killed.

    It sleeps until its standard input ends, which the system sees to in any case.
    """
    return subprocess.Popen(  # noqa: S603  # our own list, no shell
        [sys.executable, "-m", __name__, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parents[1],
        start_new_session=True,
    )


def _guard(home: Path) -> None:
    sys.stdin.read()
    if home.exists():
        stop_all(home)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
