"""Whole runs in this process: what is trained, told, kept, stopped and failed."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from tests.support.runs import job, model_bytes, run
from tests.support.task import AllFail, FailingNodes, NoServerData, TinyTask
from truststram import events
from truststram.engine import run_local
from truststram.errors import CheckpointError, ConfigError, RunError
from truststram.result import RunResult
from truststram.tasks import register_task


@pytest.mark.picture
def test_a_run_learns_and_leaves_its_files(tmp_path):
    result = run(tmp_path)
    assert result.ok
    assert [r.round for r in result.rounds] == [1, 2, 3, 4, 5]
    assert result.metrics["accuracy"] > 0.9
    assert (result.nodes, result.parameters) == (5, 21)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names >= {
        *("events.jsonl", "report.json", "curves.png"),
        *("model.safetensors", "best.safetensors", "rounds"),
    }
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["metrics"] == result.metrics
    assert report["status"] == "completed"
    for row in result.rounds:
        assert (row.cohort, row.replies, row.rejected, row.lost) == (5, 5, 0, 0)
        assert row.bytes_up > 5 * 21 * 4
        assert row.bytes_down > 5 * 21 * 4
        assert row.train_metrics["train-loss"] > 0


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    state = random.getstate()
    run(tmp_path, "a")
    run(tmp_path, "b")
    run(tmp_path, "c", {"run.seed": 2})
    assert model_bytes(tmp_path, "a") == model_bytes(tmp_path, "b")
    assert model_bytes(tmp_path, "a") != model_bytes(tmp_path, "c")
    assert random.getstate() == state


def test_threads_do_not_change_the_bits(tmp_path):
    run(tmp_path, "a", nodes=8)
    run(tmp_path, "b", nodes=8, threads=4)
    assert model_bytes(tmp_path, "a") == model_bytes(tmp_path, "b")


def test_sampling_is_repeatable_and_varies_by_round(tmp_path):
    changes = {"round.fraction": 0.5, "train.rounds": 6}
    run(tmp_path, "a", changes, nodes=8)
    run(tmp_path, "b", changes, nodes=8)

    def cohorts(run_id):
        log = events.read(tmp_path / run_id / "events.jsonl")
        return [tuple(e["cohort"]) for e in log if e["kind"] == "round-started"]

    assert cohorts("a") == cohorts("b")
    assert all(len(c) == 4 for c in cohorts("a"))
    assert len(set(cohorts("a"))) > 1


@pytest.mark.parametrize("who", ["server", "clients", "both", "none"])
def test_who_evaluates(tmp_path, who):
    result = run(tmp_path, changes={"round.evaluate": who, "train.rounds": 1})
    expected = {
        "server": {"accuracy", "loss"},
        "clients": {"accuracy", "loss"},
        "both": {"accuracy", "loss", "client-accuracy", "client-loss"},
        "none": set(),
    }
    assert set(result.rounds[0].metrics) == expected[who]


def test_without_server_data_the_clients_evaluate(tmp_path):
    result = run(tmp_path, changes={"train.rounds": 2}, task=NoServerData)
    assert set(result.metrics) == {"accuracy", "loss"}
    with pytest.raises(RunError, match="no test data"):
        run(tmp_path, "b", {"round.evaluate": "server"}, task=NoServerData)


@pytest.mark.parametrize("optimizer", ["adam", "yogi", "adagrad"])
def test_adaptive_server_optimizers_learn(tmp_path, optimizer):
    changes = {"server.optimizer": optimizer, "train.rounds": 15}
    losses = [r.metrics["loss"] for r in run(tmp_path, changes=changes).rounds]
    assert losses[-1] < 0.8 * losses[0]


def test_server_momentum_is_used(tmp_path):
    run(tmp_path, "a", {"server.momentum": 0.5})
    run(tmp_path, "b")
    assert model_bytes(tmp_path, "a") != model_bytes(tmp_path, "b")


def test_failing_nodes_are_counted_and_the_run_goes_on(tmp_path):
    result = run(tmp_path, task=FailingNodes)
    assert result.ok
    for row in result.rounds:
        assert (row.replies, row.rejected, row.codes) == (3, 2, {"client-error": 2})
    log = events.read(tmp_path / "run" / "events.jsonl")
    dropped = Counter(e["node"] for e in log if e["kind"] == "reply-dropped")
    assert dropped == {"1": 5, "3": 5}


def test_rounds_without_valid_reply_keep_the_model_then_fail(tmp_path):
    with pytest.raises(RunError, match=r"No valid reply in 2 rounds.*5 x client-error"):
        run(tmp_path, changes={"round.max-failed": 2}, task=AllFail)
    result = RunResult.read(tmp_path / "run")
    assert result.status == "failed"
    assert "client-error" in result.reason
    assert [r.skipped for r in result.rounds] == [True, True]
    assert len({r.metrics["loss"] for r in result.rounds}) == 1
    assert (tmp_path / "run" / "report.json").exists()


def test_best_model_and_early_stop(tmp_path):
    changes = {"run.patience": 2, "train.rounds": 50, "train.lr": 0.5}
    result = run(tmp_path, changes=changes)
    assert result.ok
    assert len(result.rounds) < 50
    assert result.rounds[-1].round == result.best["round"] + 2
    values = [r.metrics["accuracy"] for r in result.rounds]
    assert result.best["value"] == max(values)
    assert values.index(max(values)) == result.best["round"] - 1
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_a_diverging_model_is_reported_not_a_crash(tmp_path):
    result = run(tmp_path, changes={"train.lr": 1e30, "train.rounds": 2})
    assert result.status in ("completed", "failed")
    assert sum(r.rejected for r in result.rounds) > 0


def test_an_error_in_the_task_fails_the_run_with_its_reason(tmp_path):
    class Broken(TinyTask):
        def evaluate(self, model, data, job):
            raise ZeroDivisionError("broken task")

    with pytest.raises(RunError, match="ZeroDivisionError: broken task"):
        run(tmp_path, task=Broken)
    assert RunResult.read(tmp_path / "run").reason == "ZeroDivisionError: broken task"


def test_ctrl_c_is_a_stopped_run(tmp_path, monkeypatch):
    class Interrupted(TinyTask):
        def evaluate(self, model, data, job):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, task=Interrupted)
    assert RunResult.read(tmp_path / "run").status == "stopped"


def test_unsound_settings_are_refused_before_anything_is_written(tmp_path):
    changes = {"server.optimizer": "adam", "server.momentum": 0.9}
    with pytest.raises(ConfigError, match="is refused: adam, yogi and adagrad"):
        run(tmp_path, changes=changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run_id", ["../x", "a/b", ".hidden", "x" * 200])
def test_a_run_id_is_a_plain_name(tmp_path, run_id):
    with pytest.raises(ConfigError, match=r"run\.id"):
        run(tmp_path, run_id)


def test_a_folder_is_used_once_and_by_one_run(tmp_path):
    run(tmp_path, changes={"train.rounds": 1})
    with pytest.raises(CheckpointError, match="already holds a run"):
        run(tmp_path)
    from server_app.folder import RunFolder

    held = RunFolder(job(tmp_path, "run", {"run.resume": "run"}))
    with pytest.raises(CheckpointError, match="in use"):
        RunFolder(job(tmp_path, "run", {"run.resume": "run"}))
    held.close()


def test_a_resume_keeps_the_name_that_nodes_know_the_run_by(tmp_path):
    from server_app.folder import RunFolder

    def opened(folder, **changes):
        made = RunFolder(job(folder, "x" * 100, changes))
        made.events.touch()
        made.close()
        return made

    first, other = opened(tmp_path / "a"), opened(tmp_path / "b")
    resume = {"run.resume": first.id}
    assert opened(tmp_path / "a", **resume).name == first.name
    assert first.name.startswith(first.id)
    assert len(first.name) < 200  # what nodes take
    assert other.name != first.name
    kept = first.path / "name"
    for damage in (b"", kept.read_bytes()[:-1], b"../x", b"\xff"):
        kept.write_bytes(damage)
        with pytest.raises(CheckpointError, match="name is missing or damaged"):
            opened(tmp_path / "a", **resume)
    kept.unlink()
    with pytest.raises(CheckpointError, match="name is missing or damaged"):
        opened(tmp_path / "a", **resume)
    kept.write_text(first.name)
    assert opened(tmp_path / "a", **resume).name == first.name


def test_late_replies_are_counted_and_not_used(tmp_path):
    import time

    class Slow(TinyTask):
        def train_data(self, job, node):
            if node.partition == 2:
                time.sleep(0.8)
            return super().train_data(job, node)

    changes = {"round.deadline": 0.4, "train.rounds": 4, "round.evaluate": "server"}
    result = run(tmp_path, changes=changes, task=Slow, threads=6)
    assert result.ok
    assert result.rounds[0].lost == 1
    assert result.rounds[0].replies == 4
    assert sum(r.late for r in result.rounds) >= 1


def test_one_node_is_enough_if_the_job_says_so(tmp_path):
    register_task("tiny", TinyTask)
    run_local(job(tmp_path, "run", {"round.min-nodes": 1}), 1)
    assert RunResult.read(tmp_path / "run").ok
    with pytest.raises(RunError, match="needs 2 nodes and 1 are connected"):
        run_local(job(tmp_path, "b", {"round.join-timeout": 0.3}), 1)


def test_a_round_is_recorded_before_it_is_told(tmp_path, monkeypatch):
    """At every round-finished event, the record of that round is on disk."""
    seen = []
    append = events.EventLog.append

    def spy(self, kind, **data):
        if kind == "round-finished":
            names = [
                p.name
                for p in (tmp_path / "run" / "rounds").glob("round-*.safetensors")
            ]
            seen.append(any(n.startswith(f"round-{data['round']:06d}") for n in names))
        return append(self, kind, **data)

    monkeypatch.setattr(events.EventLog, "append", spy)
    run(tmp_path)
    assert seen == [True] * 5
