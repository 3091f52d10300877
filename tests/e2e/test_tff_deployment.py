"""A plan on a real SuperLink: three hospitals that pinned it, one that did not."""

from __future__ import annotations

import json

import pytest

from tests.e2e.test_deployment import Federation
from tests.tff_bridge.plans import BREAST_CANCER
from tff_bridge.plan import read_plan
from truststram.result import RunResult

pytestmark = pytest.mark.slow


@pytest.fixture
def federation(tmp_path, root):
    found = Federation(tmp_path, root)
    yield found
    found.close()


def test_three_supernodes_run_a_plan_and_one_refuses_it(federation, tmp_path):
    sha256, runs = read_plan(BREAST_CANCER).sha256, tmp_path / "runs"
    federation.superlink()
    for number in range(4):
        pinned = sha256 if number else "0" * 64
        federation.supernode(
            number,
            f'partition-id={number} num-partitions=4 tff-plans="{pinned}"',
        )
    done = federation.submit(
        f'task.name="breast-cancer" tff.plan="{BREAST_CANCER}" train.rounds=2 '
        f'round.min-nodes=3 round.evaluate="both" run.dir="{runs}" run.id="plan"'
    )
    path = runs / "plan" / "events.jsonl"
    assert path.exists(), done.stdout[-4000:] + done.stderr[-2000:]
    result = RunResult.read(runs / "plan")
    assert result.ok, result.reason
    for row in result.rounds:
        assert (row.cohort, row.replies, row.codes) == (3, 3, {})
        assert row.train_metrics["train-examples"] > 0
        assert row.metrics["client-accuracy"] > 0.8
    assert result.metrics["accuracy"] > 0.9
    events = [json.loads(line) for line in path.read_text().splitlines()]
    [plan] = [e for e in events if e["kind"] == "tff-plan"]
    assert (plan["plan"], plan["pinned"]) == (sha256, "each node")
    assert plan["evaluation"] == "plan"
    offered = [e for e in events if e["kind"] == "plan-offered"]
    assert sum(e["answered"] for e in offered) == 3
    assert sum(e["bytes_down"] for e in offered) > 4 * BREAST_CANCER.stat().st_size
    refused = [e for e in events if e["kind"] == "node-refused"]
    assert len(refused) == 1
    assert "is not pinned here" in refused[0]["reason"]
    assert events.index(refused[0]) < events.index(
        next(e for e in events if e["kind"] == "round-started")
    )
