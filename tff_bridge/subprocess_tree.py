"""Run a program to its end, with a time limit, and leave nothing of it behind.

The program gets a process group of its own. When it ends, takes too long or is
interrupted, the whole group is killed. If this process is killed itself, a guard, which
waits for the end of a pipe that only this process holds open, kills the group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from truststram._processes import terminable
from truststram.errors import RunError

__all__ = ["run_bounded"]

MAX_ERRORS = 1 << 16
POLL = 0.05

# It must not share a group with the program, nor with us: Ctrl-C reaches a group.
_GUARD = """
import os, signal, sys
sys.stdin.buffer.read()
try:
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
except (ProcessLookupError, PermissionError):
    pass  # it has ended
"""


def run_bounded(
    command: Sequence[str], *, environment: Mapping[str, str], time_limit: float
) -> tuple[int, str]:
    """Run ``command`` and return (status, the last of what it wrote).

    When this returns or raises, no process of the program's group is left.

    Raises
    ------
    RunError
        If it does not start or does not end within ``time_limit`` seconds.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM.
    """
    with tempfile.TemporaryFile() as output, terminable():
        process = _started(command, environment, output.fileno())
        try:
            # A guard that is too late finds no group: numbers are not used again
            # before the leader is reaped, which is the last thing done here.
            guard = _start_guard(process.pid)
            try:
                _wait(process.pid, time_limit, os.path.basename(command[0]))
            finally:
                _end(process)
                guard.kill()
                guard.communicate()
        finally:
            _end(process)
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - MAX_ERRORS))
        return process.returncode, output.read().decode(errors="replace")


def _started(
    command: Sequence[str], environment: Mapping[str, str], output: int
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603  # our own list, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as error:
        raise RunError(f"{command[0]} does not start: {error.strerror}.") from error


def _start_guard(group: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  # our own text, no shell
        [sys.executable, "-S", "-c", _GUARD, str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait(pid: int, time_limit: float, name: str) -> None:
    """Wait until a child has ended, without reaping it."""
    end = time.monotonic() + time_limit
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            raise RunError(f"{name} did not end within {time_limit:g} s.")
        time.sleep(POLL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a group, then reap its leader."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
