"""Secure sums on Flower's simulation: keys reach processes, and are gone afterwards."""

from __future__ import annotations

import pytest

from tests.e2e.test_flower_run import Machine, finished
from tests.e2e.test_flower_run import machine as machine
from truststram import events
from truststram.result import RunResult

JOB = ["-c", "train.rounds=2", "-c", "train.local-epochs=1", "-c", "run.id=it"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_an_encrypted_job_runs_on_flower(machine: Machine, root, tmp_path, scheme):
    process = machine.start(
        root,
        *("run", "--engine", "flower", "--nodes", "4", *JOB),
        *("-c", f"secure.scheme={scheme}", "-c", f"run.dir={tmp_path}"),
        cwd=tmp_path,
    )
    code, _, err = finished(process)
    assert code == 0, err
    result = RunResult.read(tmp_path / "it")
    assert result.ok
    assert [report.replies for report in result.rounds] == [4, 4]
    log = events.read(tmp_path / "it" / "events.jsonl")
    kinds = [event["kind"] for event in log]
    assert kinds.count("secure-plan") == 1
    assert kinds.index("secure-plan") < kinds.index("round-started")
    assert [e["clients"] for e in log if e["kind"] == "secure-sum"] == [4, 4]
    # What the processes shared their keys through.
    assert not list(machine.tmp.glob("truststram-*-secure-*"))
