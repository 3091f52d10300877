"""Whole runs with compression: as accurate, smaller as promised, the same on resume."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from server_app import checkpoint
from strategies.compression.codecs import make_codec
from tests.strategies.compression.support import WideTask
from tests.support.runs import job, model_bytes
from tests.support.runs import run as run_of
from truststram import events
from truststram.engine import run_local
from truststram.errors import RunError
from truststram.job import Job
from truststram.progress import plan_line
from truststram.result import RunResult
from truststram.runner import run as run_job
from truststram.tasks import register_task

run = partial(run_of, task=WideTask)
D = 1604
LONG = {"train.rounds": 8, "train.lr": 0.05}


def log_of(result, *kinds):
    return [e for e in events.read(result.dir / "events.jsonl") if e["kind"] in kinds]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"), "plain", LONG)


CODECS = ("q8", "topk", "topk-q8", "topk-shared", "randk", "eden-1", "eden-2")


@pytest.mark.parametrize("codec", [*CODECS, "adaptive"])
def test_as_accurate_and_as_small_as_told_before(plain, tmp_path, codec):
    found = run(tmp_path, codec, {**LONG, "compression.codec": codec})
    slow = codec in ("topk-shared", "randk")  # a tenth of the coordinates a round
    margin = 0.25 if slow else 0.04
    assert found.metrics["accuracy"] > plain.metrics["accuracy"] - margin
    assert all(report.rejected == 0 for report in found.rounds)
    [plan] = log_of(found, "compression-plan")
    assert (plan["codec"], plan["parameters"]) == (codec, D)
    report = found.rounds[-1]
    total = (report.bytes_up + report.saved_up) / report.bytes_up
    assert total > 3
    # What the same messages are without compression.
    assert report.bytes_up + report.saved_up == plain.rounds[-1].bytes_up
    if codec == "adaptive":
        return
    made, sizes = make_codec(codec, 0.1), log_of(found, "compressed")[-1]["nodes"]
    # Beside the frame: names, metrics, the answer to the server.
    frame = sum(sizes.values()) / len(sizes) - BESIDE - 5 * made.public
    assert plan["up"] == round(made.predicted_bytes(D))
    assert frame == pytest.approx(plan["up"], rel=0.02 if made.fixed_size else 0.1)


BESIDE = 90


@pytest.mark.parametrize("downlink", ["q8", "topk-q8", "eden-2"])
def test_the_way_down_is_smaller_and_as_accurate(plain, tmp_path, downlink):
    changes = {**LONG, "train.rounds": 12, "compression.downlink": downlink}
    found = run(tmp_path, "run", changes)
    assert found.metrics["accuracy"] > plain.metrics["accuracy"] - 0.04
    first, *later = found.rounds
    assert first.saved_down < 0  # the first model is sent whole, with what is asked
    expected = make_codec(downlink, 0.1).predicted_bytes(D)
    for report in later:
        each = report.bytes_down / report.cohort
        assert expected * 0.8 < each < expected * 1.2 + 250
    assert all(report.rejected == 0 for report in found.rounds)


@pytest.mark.parametrize(
    "changes",
    [
        {"compression.codec": "topk-q8", "round.evaluate": "clients"},
        {"compression.codec": "topk-q8", "robust.rule": "wfagg"},
        {"compression.codec": "eden-2", "robust.rule": "median"},
        {"compression.codec": "topk-q8", "server.optimizer": "adam"},
        {"compression.codec": "q8", "round.fraction": 0.6},
        {"compression.codec": "topk-q8", "round.fraction": 0.6},
    ],
)
def test_it_goes_with_rules_optimizers_and_sampling(tmp_path, changes):
    found = run(
        tmp_path, "run", {**LONG, "compression.downlink": "q8", **changes}, nodes=6
    )
    accuracy = found.metrics.get("accuracy") or found.metrics["client-accuracy"]
    assert accuracy > 0.6
    assert all(report.rejected == 0 for report in found.rounds)


PRIVATE = {
    "privacy.mechanism": "gaussian",
    "privacy.epsilon": 20.0,
    "privacy.clip": 0.5,
    "train.rounds": 4,
    "server.lr": 1.0,
}


@pytest.mark.parametrize("codec", [*CODECS, "none"])
@pytest.mark.parametrize("trust", ["central", "local"])
def test_it_goes_with_noise(tmp_path, codec, trust):
    if codec not in ("topk-q8", "eden-2", "none"):
        Job.of({**PRIVATE, "privacy.trust": trust, "compression.codec": codec})
        return
    changes = {"privacy.trust": trust, "compression.codec": codec}
    found = run(tmp_path, "run", {**PRIVATE, **changes, "compression.downlink": "q8"})
    assert found.ok
    assert all(report.rejected == 0 for report in found.rounds)
    sizes = [event["nodes"] for event in log_of(found, "compressed")]
    # Who takes part in a round with central noise is a secret.
    assert all(not nodes for nodes in sizes) == (trust == "central")


@pytest.mark.parametrize("codec", ["randk", "topk-shared"])
def test_it_makes_secure_sums_smaller(tmp_path, codec):
    secure = {"secure.scheme": "secagg", "train.rounds": 3}
    whole = run(tmp_path, "whole", secure)
    found = run(tmp_path, "part", {**secure, "compression.codec": codec})
    assert found.metrics["accuracy"] > 0.3
    assert all(report.rejected == 0 for report in found.rounds)
    assert found.rounds[-1].bytes_up < 0.6 * whole.rounds[-1].bytes_up
    [plan] = log_of(found, "compression-plan")
    assert "up" not in plan  # the secure sum knows
    assert plan["values"] == round(0.1 * D)
    assert f"up {codec}: {plan['values']} of 1,604 values" in plan_line(plan)
    # A difference of what was sent with what would have been, nobody measured.
    assert {event["saved_up"] for event in log_of(found, "compressed")} == {0}


def kill_in(number):
    write = checkpoint.write

    def killing(folder, record):
        if record.round == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(folder, record)

    checkpoint.write = killing


@pytest.mark.parametrize(
    "changes",
    [
        {"compression.codec": "q8", "compression.downlink": "q8"},
        {"compression.codec": "eden-2", "compression.downlink": "topk-q8"},
        {"compression.downlink": "eden-2", "round.evaluate": "both"},
        {"compression.codec": "topk-shared", "compression.error-feedback": False},
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
def test_a_killed_run_resumes_to_the_same_model(tmp_path, changes):
    changes = {"train.rounds": 5, **changes}
    run(tmp_path, "whole", changes)
    if (child := os.fork()) == 0:
        try:
            register_task("tiny", WideTask)
            kill_in(3)
            run_local(job(tmp_path, "killed", changes), 5)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    run(tmp_path, "killed", {**changes, "run.resume": "killed"})
    assert model_bytes(tmp_path, "killed") == model_bytes(tmp_path, "whole")


def test_a_residual_that_died_with_a_simulation_is_told(tmp_path):
    changes = {"compression.codec": "topk-q8", "train.rounds": 2}
    run(tmp_path, "run", changes)
    resumed = {**changes, "train.rounds": 3, "run.resume": "run"}
    found = run(tmp_path, "run", resumed)
    told = [event["node"] for event in log_of(found, "residual-lost")]
    assert sorted(told) == ["0", "1", "2", "3", "4"]
    assert {event["round"] for event in log_of(found, "residual-lost")} == {3}


def test_the_same_seed_gives_the_same_run(tmp_path):
    changes = {"compression.codec": "topk-q8", "compression.downlink": "eden-2"}
    models = [run(tmp_path, f"run{i}", changes) for i in (1, 2)]
    assert [m.bytes_up for m in models[0].rounds] == [
        m.bytes_up for m in models[1].rounds
    ]
    assert model_bytes(tmp_path, "run1") == model_bytes(tmp_path, "run2")


def test_adaptive_keeps_to_the_tolerance(tmp_path):
    sizes = {}
    for tolerance in (0.001, 0.2, 0.9):
        changes = {
            "compression.codec": "adaptive",
            "compression.error-tolerance": tolerance,
        }
        found = run(tmp_path, f"run{tolerance}", changes)
        sizes[tolerance] = found.rounds[-1].bytes_up
        chosen = log_of(found, "codec-chosen")
        assert {event["node"] for event in chosen} == {"0", "1", "2", "3", "4"}
        last = {event["node"]: event for event in chosen}
        assert all(event["error"] <= tolerance for event in last.values())
    assert sizes[0.001] > 1.5 * sizes[0.2] > 1.5 * sizes[0.9]


def test_a_run_of_clients_that_only_send_junk_says_why(tmp_path, monkeypatch):
    from strategies.compression import wire

    monkeypatch.setattr(wire, "pack", lambda *a, **k: b"junk")
    monkeypatch.setattr(wire, "unpack", _junk(wire.unpack))
    changes = {"compression.codec": "q8", "round.max-failed": 1}
    with pytest.raises(RunError, match="5 x frame-size"):
        run(tmp_path, "run", changes)
    assert RunResult.read(tmp_path / "run").status == "failed"


def _junk(unpack):
    """Let nodes decode their own junk, so that it reaches the server."""
    calls = []

    def found(frame, **options):
        calls.append(frame)
        if len(calls) <= 5:
            import numpy as np

            return np.zeros(options["d"], np.float32)
        return unpack(frame, **options)

    return found


def test_the_command_shows_plan_and_ratio(tmp_path, capsys):
    register_task("tiny", WideTask)
    config = {
        "task.name": "tiny",
        "train.rounds": 2,
        "compression.codec": "topk-q8",
        "compression.downlink": "q8",
    }
    run_job(config, nodes=3, dir=tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "compression expected: up topk-q8: " in shown
    assert "round 2/2" in shown
    assert "x less)" in shown.splitlines()[-1]
