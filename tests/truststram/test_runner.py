"""The runner: what it asks of an engine, what it returns, what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.truststram.played import play
from truststram import events, runner
from truststram.errors import ConfigError, RunError
from truststram.job import Job
from truststram.result import RunResult

pytestmark = pytest.mark.usefixtures("undrawn")


class Engine:
    """Stands for the in-process engine; remembers how it was called."""

    def __init__(self):
        self.calls = []
        self.act = play

    def __call__(self, job, nodes, threads=1):
        self.calls.append((job, nodes, threads))
        self.act(job)


@pytest.fixture
def local(monkeypatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr("truststram.engine.run_local", engine)
    return engine


def test_the_result_is_read_from_the_events(local, tmp_path):
    result = runner.run({"train.rounds": 2}, dir=tmp_path, nodes=4, threads=3)
    assert result.ok
    assert [r.round for r in result.rounds] == [1, 2]
    job, nodes, threads = local.calls[0]
    assert (nodes, threads) == (4, 3)
    assert result.dir == tmp_path / result.id == Path(job.run.dir) / job.run.id
    assert job.train.rounds == 2


def test_runs_go_to_the_callers_folder_by_default(local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.run({"data.path": "some/data"})
    assert result.dir.parent == tmp_path / "runs"
    assert result.job["run.dir"] == str(tmp_path / "runs")
    # A run's processes have other working directories: a relative path would be lost.
    assert result.job["data.path"] == str(tmp_path / "some/data")


def test_ids_of_one_second_differ(local, tmp_path):
    ids = {runner.run(dir=tmp_path).id for _ in range(3)}
    assert len(ids) == 3
    assert all(i.split("-")[2] == "digits" for i in ids)


@pytest.mark.parametrize("key", ["run.id", "run.resume"])
@pytest.mark.parametrize("name", ["../x", "a/b", "/a", ".hidden", "x" * 101, "a b"])
def test_an_id_cannot_leave_the_folder_of_runs(local, tmp_path, key, name):
    with pytest.raises(ConfigError, match=key):
        runner.run({key: name}, dir=tmp_path / "runs")
    assert local.calls == []


def test_an_id_is_used_once(local, tmp_path):
    runner.run({"run.id": "mine"}, dir=tmp_path)
    with pytest.raises(ConfigError, match=r"holds a run already.*run\.resume"):
        runner.run({"run.id": "mine"}, dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"engine": "ray"}, "one of local, flower"),
        ({"nodes": 0}, ">= 1"),
        ({"nodes": 1}, "round.min-nodes"),
        ({"threads": 0}, ">= 1"),
        ({"engine": "flower", "threads": 2}, "only for the local engine"),
        ({"engine": "flower", "task": object()}, "a node's own configuration"),
        ({"job": {"task.name": "digit"}}, "digits"),
        ({"job": {"train.round": 1}}, "Did you mean train.rounds"),
        ({"job": {"server.optimizer": "adam", "server.momentum": 0.5}}, "refused"),
    ],
)
def test_what_cannot_run_leaves_nothing(local, tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        runner.run(**arguments, dir=tmp_path / "runs")
    assert local.calls == []
    assert not (tmp_path / "runs").exists()


def test_all_wrong_arguments_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        runner.run(engine="flower", nodes=0, threads=2, task=object(), dir=tmp_path)
    assert len(str(error.value).splitlines()) == 3


def test_a_task_of_the_caller_is_known_in_this_process(local, tmp_path):
    from truststram.tasks import load_task
    from truststram.tasks.digits import Digits

    class Mine(Digits):
        """A task that only this process knows."""

    runner.run({"task.name": "mine-1"}, task=Mine, dir=tmp_path)
    assert isinstance(load_task("mine-1"), Mine)
    task = Mine()
    runner.run({"task.name": "mine-2"}, task=task, dir=tmp_path)
    assert load_task("mine-2") is task


def test_a_job_refused_by_the_engine_leaves_no_folder(local, tmp_path):
    def refuse(job):
        raise ConfigError("no")

    local.act = refuse
    with pytest.raises(ConfigError):
        runner.run(dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RunError("no nodes"), ZeroDivisionError("bug")])
def test_a_run_that_dies_gets_an_end_and_its_files(local, tmp_path, error):
    def die(job):
        play(job, end=None)
        raise error

    local.act = die
    with pytest.raises(type(error)):
        runner.run({"run.id": "x"}, dir=tmp_path)
    result = RunResult.read(tmp_path / "x")
    assert (result.status, result.reason) == ("failed", str(error))
    report = json.loads((tmp_path / "x/report.json").read_text())
    assert report["status"] == "failed"
    assert (tmp_path / "x/curves.png").exists()


def test_a_torn_last_line_does_not_hide_the_end(local, tmp_path):
    def die(job):
        play(job, end=None)
        with (tmp_path / "x/events.jsonl").open("a") as file:
            file.write('{"seq": 3, "ki')
        raise RunError("power cut")

    local.act = die
    with pytest.raises(RunError):
        runner.run({"run.id": "x"}, dir=tmp_path)
    assert RunResult.read(tmp_path / "x").reason == "power cut"


def test_the_end_that_the_server_wrote_stands(local, tmp_path):
    def fail(job):
        play(job, end="failed", reason="the server's reason")
        raise RunError("another")

    local.act = fail
    with pytest.raises(RunError):
        runner.run({"run.id": "x"}, dir=tmp_path)
    assert RunResult.read(tmp_path / "x").reason == "the server's reason"


def test_a_run_of_another_process_is_not_ended(local, tmp_path):
    import fcntl

    def busy(job):
        raise RunError("in use")

    runner.run({"run.id": "x"}, dir=tmp_path)
    path = tmp_path / "x/events.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    before = path.read_bytes()
    local.act = busy
    with (tmp_path / "x/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use"):
            runner.run({"run.resume": "x"}, dir=tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_is_recorded(local, tmp_path, number):
    def slow(job):
        play(job, end=None)
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 5)

    local.act = slow
    with pytest.raises(KeyboardInterrupt):
        runner.run({"run.id": "x"}, dir=tmp_path)
    assert RunResult.read(tmp_path / "x").status == "stopped"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_resume_takes_the_old_keys_and_the_changes(local, tmp_path):
    first = {"run.id": "x", "train.lr": 0.5, "train.rounds": 2, "data.path": "/d"}
    runner.run(first, dir=tmp_path)
    for change in (
        {"run.resume": "x", "train.rounds": 9},
        Job.of({"run.resume": "x", "train.rounds": 9}),
    ):
        runner.run(change, dir=tmp_path)
        job = local.calls[-1][0]
        assert (job.run.id, job.run.resume) == ("x", "x")
        assert (job.train.lr, job.train.rounds) == (0.5, 9)
        assert job.data.path == "/d"
        assert job.run.dir == str(tmp_path)


def test_resume_needs_a_run_that_started(local, tmp_path):
    with pytest.raises(ConfigError, match="no such run"):
        runner.run({"run.resume": "x"}, dir=tmp_path)
    (tmp_path / "x").mkdir()
    log = events.EventLog(tmp_path / "x/events.jsonl")
    log.append("run-finished", status="failed", reason="", seconds=0)
    log.close()
    with pytest.raises(ConfigError, match="never started"):
        runner.run({"run.resume": "x"}, dir=tmp_path)
    with pytest.raises(ConfigError, match="different runs"):
        runner.run({"run.resume": "x", "run.id": "y"}, dir=tmp_path)


def test_the_keys_of_a_resume_are_checked(local, tmp_path):
    runner.run({"run.id": "x"}, dir=tmp_path)
    change = {"run.resume": "x", "train.round": 3, "train.lr": -1.0}
    with pytest.raises(ConfigError) as error:
        runner.run(change, dir=tmp_path)
    assert len(str(error.value).splitlines()) == 2
    assert len(local.calls) == 1
