"""Whole runs under secure aggregation train as without, also while nodes drop out."""

from __future__ import annotations

import pytest

from strategies import stack
from strategies.mean.layer import WeightedMean
from strategies.secure import secagg_mod as module
from strategies.secure.wire import SECURE
from tests.support.runs import run
from truststram import events
from truststram.engine import run_local
from truststram.errors import RunError
from truststram.job import Job
from truststram.result import RunResult

SECAGG = {"secure.scheme": "secagg"}
MALICIOUS = {**SECAGG, "secure.threat": "malicious"}
# Round -> stage -> nodes that fail in it.
GONE = {
    1: {"keys": [0], "mask": [1]},
    2: {"shares": [2], "unmask": [3]},
    3: {"mask": [3, 4]},
}


@pytest.fixture
def _alike(monkeypatch):
    """Let plaintext runs count all nodes alike, as secure sums do."""
    monkeypatch.setattr(
        stack, "WeightedMean", lambda inner, **_: WeightedMean(inner, weighted=False)
    )


@pytest.fixture
def failing(monkeypatch):
    """Return a table that makes nodes fail, which may be filled."""
    gone: dict = {}
    real = module.secagg_mod

    def made(job, *args, **kwargs):
        mod = real(job, *args, **kwargs)

        def failing_mod(message, context, call_next):
            if SECURE in message.content:
                request = message.content[SECURE]
                nodes = gone.get(request["round"], {}).get(request["stage"], [])
                if int(context.node_config["partition-id"]) in nodes:
                    raise RuntimeError("this node is gone")
            return mod(message, context, call_next)

        return failing_mod

    monkeypatch.setattr(module, "secagg_mod", made)
    return gone


def accuracies(result):
    return [report.metrics["accuracy"] for report in result.rounds]


@pytest.mark.usefixtures("_alike")
@pytest.mark.parametrize("changes", [SECAGG, MALICIOUS], ids=["semi", "malicious"])
def test_a_run_is_that_of_the_equal_mean(tmp_path, changes):
    plain = run(tmp_path, "plain")
    found = run(tmp_path, "secagg", changes)
    assert accuracies(found) == pytest.approx(accuracies(plain), abs=0.011)
    told = events.read(tmp_path / "secagg" / "events.jsonl")
    kinds = [event["kind"] for event in told]
    assert kinds.index("secure-plan") < kinds.index("round-started")
    assert kinds.count("secure-sum") == 5
    # Bytes of all stages are in the report.
    stages = [e for e in told if e["kind"] == "secure-stage" and e["round"] == 5]
    report = found.rounds[-1]
    assert report.bytes_up > sum(e["bytes_up"] for e in stages) + 4 * 5 * 21
    assert report.bytes_down > sum(e["bytes_down"] for e in stages) + 4 * 5 * 21
    assert (report.cohort, report.replies, report.rejected) == (5, 5, 0)


def test_a_run_goes_on_while_nodes_drop_out_at_every_stage(tmp_path, failing):
    failing |= GONE
    found = run(tmp_path, "run", {**SECAGG, "round.min-nodes": 6}, nodes=6)
    assert accuracies(found)[-1] > 0.85
    sums = [
        event["clients"]
        for event in events.read(tmp_path / "run" / "events.jsonl")
        if event["kind"] == "secure-sum"
    ]
    assert sums == [4, 5, 4, 6, 6]
    assert [report.codes for report in found.rounds[:2]] == [{"client-error": 2}] * 2


def test_rounds_with_too_few_nodes_end_the_run_and_say_so(tmp_path, failing):
    failing |= {number: {"keys": [0, 1, 2]} for number in range(1, 6)}
    with pytest.raises(RunError, match="No valid reply in 3 rounds"):
        run(tmp_path, "run", SECAGG)
    told = events.read(tmp_path / "run" / "events.jsonl")
    codes = [event["code"] for event in told if event["kind"] == "secure-refused"]
    assert codes == ["cohort-size"] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("_alike")
@pytest.mark.parametrize("threat", ["semi-honest", "malicious"])
def test_digits_reach_the_accuracy_of_plaintext(tmp_path, failing, threat):
    def best(name, **changes):
        job = {"train.rounds": 10, "round.min-nodes": 10, **changes}
        job |= {"run.dir": str(tmp_path), "run.id": name}
        run_local(Job.of(job), 10)
        return accuracies(RunResult.read(tmp_path / name))[-1]

    plain = best("plain")
    masked = {**SECAGG, "secure.threat": threat}
    assert best("secagg", **masked) == pytest.approx(plain, abs=0.003)
    stages = ("keys", "shares", "mask")
    for number in range(1, 11):
        failing[number] = {stages[number % 3]: [number % 10, (number + 3) % 10]}
        failing[number]["unmask"] = [(number + 5) % 10]
    assert best("dropouts", **masked) > plain - 0.03
