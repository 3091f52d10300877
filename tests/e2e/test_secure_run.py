"""Secure sums on Flower's simulation: keys reach processes, and are gone afterwards."""

from __future__ import annotations

import signal
import time

import pytest

from tests.e2e.test_flower_run import Machine, finished
from tests.e2e.test_flower_run import machine as machine
from truststram import events
from truststram.result import RunResult

JOB = ["-c", "train.rounds=2", "-c", "train.local-epochs=1", "-c", "run.id=it"]


SUMS = {
    "bfv": {"secure.scheme": "bfv"},
    "ckks": {"secure.scheme": "ckks"},
    "secagg": {"secure.scheme": "secagg"},
    "malicious": {"secure.scheme": "secagg", "secure.threat": "malicious"},
    "distributed": {
        "secure.scheme": "secagg",
        "privacy.mechanism": "skellam",
        "privacy.trust": "distributed",
        "privacy.epsilon": 6,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", SUMS.values(), ids=SUMS)
def test_a_job_with_secure_sums_runs_on_flower(
    machine: Machine, root, tmp_path, changes
):
    keys = [part for key, value in changes.items() for part in ("-c", f"{key}={value}")]
    process = machine.start(
        root,
        *("run", "--engine", "flower", "--nodes", "4", *JOB, *keys),
        *("-c", f"run.dir={tmp_path}"),
        cwd=tmp_path,
    )
    code, _, err = finished(process)
    assert code == 0, err
    result = RunResult.read(tmp_path / "it")
    assert result.ok
    assert [(r.replies, r.rejected) for r in result.rounds] == [(4, 0), (4, 0)]
    log = events.read(tmp_path / "it" / "events.jsonl")
    kinds = [event["kind"] for event in log]
    assert kinds.count("secure-plan") == 1
    assert kinds.index("secure-plan") < kinds.index("round-started")
    assert [e["clients"] for e in log if e["kind"] == "secure-sum"] == [4, 4]
    # Every round is paid for, and the noise is planned for just these two.
    spent = [e["spent"] for e in log if e["kind"] == "privacy-spent"]
    assert len(spent) == (2 if "privacy.trust" in changes else 0)
    assert spent == sorted(spent)
    assert not spent or 3 < spent[-1] <= 6
    # What the processes shared their keys through.
    assert not list(machine.tmp.rglob("truststram-*-secure-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_keys_behind(machine: Machine, root, tmp_path, number):
    process = machine.start(
        root,
        *("run", "--engine", "flower", "--nodes", "4", *JOB),
        *("-c", "train.rounds=1000000", "-c", "secure.scheme=secagg"),
        *("-c", f"run.dir={tmp_path}"),
        cwd=tmp_path,
    )
    path, deadline = tmp_path / "it" / "events.jsonl", time.monotonic() + 120
    while not path.exists() or b'"round-finished"' not in path.read_bytes():
        assert time.monotonic() < deadline
        assert process.poll() is None, finished(process)
        time.sleep(0.2)
    [_] = machine.tmp.rglob("truststram-*-secure-*/federation.key")
    process.send_signal(number)
    process.communicate()
    while machine.survivors():
        assert time.monotonic() < deadline + 60
        time.sleep(0.5)
    # The guard of a killed runner ends with its work: the folder is the last of it.
    while list(machine.tmp.rglob("federation.key")):
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)
