"""Processes import what they need, when they need it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    *("datasets", "flwr_datasets", "matplotlib", "opacus", "pandas", "ray", "sklearn"),
    *("tenseal", "tensorflow", "torch"),
)


@pytest.mark.parametrize("module", ["client_app.main", "server_app.main"])
def test_an_app_starts_without_what_some_jobs_need(module, root):
    """Every simulated node and, deployed, every message is a process that starts."""
    code = f"""
import sys, {module}
from truststram.job import Job
from truststram.techniques import stack
stack.build(Job())
stack.mods(Job())
print(*sorted(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & set(HEAVY)
