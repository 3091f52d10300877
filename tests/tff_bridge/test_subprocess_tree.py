"""Nothing of a program is left behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tff_bridge.subprocess_tree import run_bounded
from truststram.errors import RunError

# A program with a child that would stay for a minute.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(float(sys.argv[2]))
"""


def family(path, seconds):
    return [sys.executable, "-S", "-c", FAMILY, str(path), str(seconds)]


def gone(path: Path, patience=5.0) -> bool:
    """Return whether the child written down in ``path`` ends soon."""
    end = time.monotonic() + patience
    pid = int(path.read_text())
    while time.monotonic() < end:
        if not psutil.pid_exists(pid):
            return True
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def wait_for(path: Path) -> None:
    end = time.monotonic() + 10
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_status_and_output_come_back():
    program = "import sys; print('out'); print('wrong', file=sys.stderr); sys.exit(3)"
    status, output = run_bounded(
        [sys.executable, "-S", "-c", program], environment=os.environ, time_limit=20
    )
    assert status == 3
    assert "wrong" in output


def test_only_the_end_of_much_output_is_kept():
    program = "import sys; sys.stdout.write('x' * 10**6 + 'end')"
    _, output = run_bounded(
        [sys.executable, "-S", "-c", program], environment=os.environ, time_limit=20
    )
    assert len(output) == 1 << 16
    assert output.endswith("end")


def test_a_program_that_does_not_start_is_told():
    with pytest.raises(RunError, match="does not start"):
        run_bounded(["/no/such/program"], environment={}, time_limit=1)


def test_children_end_with_the_program(tmp_path):
    run_bounded(family(tmp_path / "pid", 0), environment=os.environ, time_limit=20)
    assert gone(tmp_path / "pid")


def test_children_end_at_the_time_limit(tmp_path):
    with pytest.raises(RunError, match="did not end within 1 s"):
        run_bounded(family(tmp_path / "pid", 60), environment=os.environ, time_limit=1)
    assert gone(tmp_path / "pid")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_children_end_with_us(tmp_path, root, end):
    ours = (
        "import os, sys\n"
        "from tff_bridge.subprocess_tree import run_bounded\n"
        f"run_bounded({family(tmp_path / 'pid', 60)!r}, environment=os.environ, "
        "time_limit=60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", ours],
        cwd=root,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(tmp_path / "pid")
        process.send_signal(end)
        assert process.wait(10) != 0
        assert gone(tmp_path / "pid")
    finally:
        process.kill()
        process.wait()
