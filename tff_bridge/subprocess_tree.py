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
from collections.abc import Mapping, Sequence

from truststram.errors import RunError

__all__ = ["run_bounded"]

MAX_ERRORS = 1 << 16

# In a process of its own: the group's leader reads its standard input to the end.
_GUARD = """
import os, signal, sys
sys.stdin.buffer.read()
try:
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
except (ProcessLookupError, PermissionError):
    pass
"""


def run_bounded(
    command: Sequence[str], *, environment: Mapping[str, str], time_limit: float
) -> tuple[int, str]:
    """Run ``command`` and return (status, the last of what it wrote as errors).

    Raises
    ------
    RunError
        If it does not start or does not end within ``time_limit`` seconds.
    KeyboardInterrupt
        As soon as the program has ended.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(  # noqa: S603  # our own list, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            raise RunError(f"{command[0]} does not start: {error.strerror}.") from error
        guard = _start_guard(process.pid)
        try:
            status = process.wait(time_limit)
        except subprocess.TimeoutExpired:
            raise RunError(
                f"{os.path.basename(command[0])} did not end within {time_limit:g} s."
            ) from None
        finally:
            _kill_group(process)
            guard.kill()
            guard.communicate()
        size = errors.seek(0, os.SEEK_END)
        errors.seek(max(0, size - MAX_ERRORS))
        return status, errors.read().decode(errors="replace")


def _start_guard(group: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  # our own text, no shell
        [sys.executable, "-S", "-c", _GUARD, str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a group, and wait until its leader is gone."""
    # The leader is not reaped before: until then its number cannot be anybody else's.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
