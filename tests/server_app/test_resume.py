"""kill -9 at any point, resume, and the final model is the same bit for bit.

The victim is a fork of this process, so that it starts in milliseconds.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from server_app import checkpoint, rounds
from tests.support.runs import job, model_bytes, run
from tests.support.task import TinyTask
from truststram import events
from truststram.engine import LocalGrid, run_local
from truststram.errors import CheckpointError
from truststram.result import RunResult
from truststram.tasks import register_task

KILL_ROUND = 3
CHANGES = {"server.momentum": 0.5, "round.fraction": 0.8}


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def before_send():
    push = LocalGrid.push_messages

    def killing(self, messages):
        messages = list(messages)
        content = messages[0].content
        if content.config_records["config"].get("server-round") == KILL_ROUND:
            die()
        return push(self, messages)

    LocalGrid.push_messages = killing


def mid_collect():
    answer, state = LocalGrid._answer, {"round": 0, "replies": 0}

    def killing(self, message):
        number = message.content.config_records["config"].get("server-round")
        state["replies"] += number == KILL_ROUND
        if state["replies"] == 3:
            die()
        return answer(self, message)

    LocalGrid._answer = killing


def after_aggregate():
    write = checkpoint.write

    def killing(folder, record):
        if record.round == KILL_ROUND:
            die()
        return write(folder, record)

    checkpoint.write = killing


def mid_checkpoint():
    durably = checkpoint._write_durably

    def killing(path, data):
        if path.name.startswith(f"round-{KILL_ROUND:06d}"):
            path.with_suffix(".tmp1").write_bytes(data[: len(data) // 2])
            die()
        durably(path, data)

    checkpoint._write_durably = killing


def between_record_and_event():
    tell = rounds.tell

    def killing(record, folder, log):
        if record.round == KILL_ROUND:
            die()
        tell(record, folder, log)

    rounds.tell = killing


def mid_event():
    append = events.EventLog.append

    def killing(self, kind, **data):
        if kind == "round-finished" and data["round"] == KILL_ROUND:
            self._file.write(b'{"seq": 12, "kind": "round-fin')
            die()
        return append(self, kind, **data)

    events.EventLog.append = killing


def after_event():
    append = events.EventLog.append

    def killing(self, kind, **data):
        if kind == "round-started" and data["round"] == KILL_ROUND + 1:
            die()
        return append(self, kind, **data)

    events.EventLog.append = killing


POINTS = {
    f.__name__: f
    for f in (
        *(before_send, mid_collect, after_aggregate, mid_checkpoint),
        *(between_record_and_event, mid_event, after_event),
    )
}


def killed(folder, run_id, plant, changes=CHANGES, nodes=5):
    """Run in a fork that kills itself; return when it is dead."""
    register_task("tiny", TinyTask)
    pid = os.fork()
    if pid == 0:
        try:
            plant()
            run_local(job(folder, run_id, changes), nodes)
        finally:
            os._exit(0)  # not reached if the plant worked
    end = time.monotonic() + 30
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.WIFSIGNALED(status), "the run ended before the kill point"
            assert os.WTERMSIG(status) == signal.SIGKILL
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the victim did not reach its kill point")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, "whole", CHANGES)
    return folder


@pytest.mark.parametrize("point", POINTS)
def test_resume_is_bit_identical(tmp_path, uninterrupted, point):
    killed(tmp_path, "run", POINTS[point])
    result = run(tmp_path, "run", {**CHANGES, "run.resume": "run"})
    whole = RunResult.read(uninterrupted / "whole")
    assert result.ok
    assert model_bytes(tmp_path, "run") == model_bytes(uninterrupted, "whole")
    best = [p / "best.safetensors" for p in (tmp_path / "run", uninterrupted / "whole")]
    assert best[0].read_bytes() == best[1].read_bytes()
    assert result.best == whole.best
    assert [r.metrics for r in result.rounds] == [r.metrics for r in whole.rounds]
    assert [r.bytes_up for r in result.rounds] == [r.bytes_up for r in whole.rounds]


def test_resume_twice(tmp_path, uninterrupted):
    killed(tmp_path, "run", mid_collect)
    register_task("tiny", TinyTask)
    pid = os.fork()
    if pid == 0:
        try:
            after_aggregate()
            run_local(job(tmp_path, "run", {**CHANGES, "run.resume": "run"}), 5)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert run(tmp_path, "run", {**CHANGES, "run.resume": "run"}).ok
    assert model_bytes(tmp_path, "run") == model_bytes(uninterrupted, "whole")


def test_a_damaged_last_record_falls_back_and_says_so(tmp_path, uninterrupted):
    killed(tmp_path, "run", after_event)
    newest = max((tmp_path / "run" / "rounds").glob("round-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    run(tmp_path, "run", {**CHANGES, "run.resume": "run"})
    assert model_bytes(tmp_path, "run") == model_bytes(uninterrupted, "whole")
    log = events.read(tmp_path / "run" / "events.jsonl")
    assert [e["file"] for e in log if e["kind"] == "record-damaged"] == [newest.name]


def test_sparse_records_resume_too(tmp_path, uninterrupted):
    sparse = {**CHANGES, "run.checkpoint-every": 2}
    register_task("tiny", TinyTask)
    pid = os.fork()
    if pid == 0:
        try:
            after_event()
            run_local(job(tmp_path, "run", sparse), 5)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    run(tmp_path, "run", {**sparse, "run.resume": "run"})
    assert model_bytes(tmp_path, "run") == model_bytes(uninterrupted, "whole")


def test_the_memory_of_a_robust_rule_is_resumed(tmp_path):
    robust = {**CHANGES, "robust.rule": "wfagg", "robust.f": 1, "round.min-nodes": 5}
    run(tmp_path, "whole", robust)
    run(tmp_path, "parts", {**robust, "train.rounds": 3})
    run(tmp_path, "parts", {**robust, "run.resume": "parts"})
    assert model_bytes(tmp_path, "parts") == model_bytes(tmp_path, "whole")


@pytest.mark.parametrize("point", [after_aggregate, between_record_and_event])
def test_reputations_and_quarantines_are_resumed(tmp_path, monkeypatch, point):
    """Killed while one node is in quarantine: nothing is told twice or forgotten."""
    monkeypatch.setattr("strategies.anomaly.standing.PRIOR", 0.5)  # a bad round or two
    watched = {
        "server.momentum": 0.5,
        "round.min-nodes": 10,
        "robust.rule": "wfagg",
        "robust.f": 2,
        "anomaly.quarantine": 2,
        "adversary.kind": "sign-flip",
        "adversary.fraction": 0.2,
        "adversary.strength": 4.0,
    }
    whole = run(tmp_path, "whole", watched, nodes=10)
    killed(tmp_path, "parts", point, watched, nodes=10)
    parts = run(tmp_path, "parts", {**watched, "run.resume": "parts"}, nodes=10)
    assert whole.defence["quarantined"]
    assert parts.defence == whole.defence
    assert model_bytes(tmp_path, "parts") == model_bytes(tmp_path, "whole")


def test_more_rounds_continue_a_finished_run(tmp_path, uninterrupted):
    run(tmp_path, "run", {**CHANGES, "train.rounds": 2})
    result = run(tmp_path, "run", {**CHANGES, "run.resume": "run"})
    assert [r.round for r in result.rounds] == [1, 2, 3, 4, 5]
    assert model_bytes(tmp_path, "run") == model_bytes(uninterrupted, "whole")


def test_other_settings_are_refused(tmp_path):
    done = run(tmp_path, "run", CHANGES)
    with pytest.raises(CheckpointError, match=r"train\.lr was 0\.1, is 0\.2"):
        run(tmp_path, "run", {**CHANGES, "run.resume": "run", "train.lr": 0.2})
    assert RunResult.read(tmp_path / "run") == done  # the refusal left no trace


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="no run ghost"):
        run(tmp_path, "ghost", {"run.resume": "ghost"})


def test_without_any_whole_record_the_run_cannot_continue(tmp_path):
    killed(tmp_path, "run", before_send)
    for path in (tmp_path / "run" / "rounds").glob("round-*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole round record"):
        run(tmp_path, "run", {**CHANGES, "run.resume": "run"})
