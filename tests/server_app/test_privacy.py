"""Whole runs with differential privacy: what is told, what it costs, what is kept."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from server_app import checkpoint
from tests.server_app.test_resume import (
    after_aggregate,
    between_record_and_event,
    killed,
    mid_checkpoint,
)
from tests.support.runs import job, model_bytes, run
from tests.support.task import FailingNodes, NoServerData, TinyTask
from truststram import events
from truststram.engine import LocalGrid, run_local
from truststram.errors import CheckpointError
from truststram.result import RunResult

CENTRAL = {
    "privacy.mechanism": "gaussian",
    "privacy.insecure": True,
    "round.fraction": 0.8,
    "server.average": 0.0,
}
# Everyone in every round: quick to plan.
WHOLE = {**CENTRAL, "round.fraction": 1.0}
LOCAL = {"privacy.mechanism": "auto", "privacy.trust": "local", "privacy.epsilon": 15.0}


class Telling(TinyTask):
    """A client whose loss is a number that can be found again."""

    SECRET = 0.1357911

    def train(self, model, data, job, seed):
        super().train(model, data, job, seed)
        return {"train-loss": self.SECRET, "secret": self.SECRET}


def kinds(folder, kind, run_id="run"):
    found = events.read(folder / run_id / "events.jsonl")
    return [event for event in found if event["kind"] == kind]


@pytest.mark.parametrize("privacy", [CENTRAL, LOCAL], ids=["central", "local"])
def test_no_clear_value_of_a_client_is_told(
    tmp_path, monkeypatch, caplog, capsys, privacy
):
    """Not in a message, an event, the report, the log or the output."""
    answer, sent = LocalGrid._answer, []

    def watched(self, message):
        reply = answer(self, message)
        if reply.has_content():
            sent.append(repr(reply.content) + str(dict(reply.content)))
        return reply

    monkeypatch.setattr(LocalGrid, "_answer", watched)
    with caplog.at_level(logging.DEBUG):
        result = run(tmp_path, changes=privacy, task=Telling)
    assert result.ok
    written = [
        path.read_text()
        for path in (tmp_path / "run").iterdir()
        if path.suffix in (".json", ".jsonl")
    ]
    told = "".join([*sent, *written, caplog.text, *capsys.readouterr()])
    assert len(sent) > 10
    assert "0.13579" not in told
    assert all(not report.train_metrics for report in result.rounds)
    counts = re.findall(r"num-examples\W+(\d+)", "".join(sent))
    assert set(counts) == {"1"}


def test_without_privacy_the_same_values_are_there(tmp_path):
    """The test above can fail."""
    result = run(tmp_path, task=Telling)
    assert result.rounds[0].train_metrics["secret"] == pytest.approx(Telling.SECRET)


@pytest.mark.parametrize("privacy", [CENTRAL, LOCAL], ids=["central", "local"])
def test_why_a_client_failed_is_not_told(tmp_path, privacy):
    result = run(tmp_path, changes=privacy, task=FailingNodes)
    assert result.ok
    text = (tmp_path / "run" / "events.jsonl").read_text()
    assert "planned failure" not in text
    assert "the reason stays on the node" in text


def test_clients_are_not_asked_to_evaluate(tmp_path, monkeypatch):
    answer, asked = LocalGrid._answer, []

    def watched(self, message):
        asked.append(message.metadata.message_type.split(".")[0])
        return answer(self, message)

    monkeypatch.setattr(LocalGrid, "_answer", watched)
    run(tmp_path, "plain", task=NoServerData)
    assert "evaluate" in asked  # without privacy they are
    asked.clear()
    result = run(tmp_path, changes=CENTRAL, task=NoServerData)
    assert result.ok
    assert set(asked) <= {"query", "train"}
    assert all(not report.metrics for report in result.rounds)


def test_the_cohort_is_not_in_the_events(tmp_path):
    run(tmp_path, changes=CENTRAL)
    assert all(event["cohort"] == [] for event in kinds(tmp_path, "round-started"))


def test_the_ledger_ends_at_the_budget(tmp_path):
    run(tmp_path, changes=CENTRAL)
    spent = [event["epsilon"] for event in kinds(tmp_path, "privacy-spent")]
    assert spent == sorted(spent)
    assert len(spent) == 5
    assert 7.9 < spent[-1] <= 8.0
    record = checkpoint.latest(tmp_path / "run" / "rounds", print)
    [layer] = [x for x in record.layers if x["name"] == "CentralDP"]
    assert layer["state"]["ledger"]["releases"]


@pytest.mark.parametrize(
    "point", [after_aggregate, mid_checkpoint, between_record_and_event]
)
def test_a_killed_run_resumes_to_the_same_model_and_spend(tmp_path, point):
    """In the insecure mode, where noise repeats; a round is charged once."""
    run(tmp_path, "whole", CENTRAL)
    killed(tmp_path, "broken", point, CENTRAL)
    run_local(job(tmp_path, "", {**CENTRAL, "run.resume": "broken"}), 5)
    assert model_bytes(tmp_path, "broken") == model_bytes(tmp_path, "whole")
    last = kinds(tmp_path, "privacy-spent", "broken")[-1]
    assert last["epsilon"] == kinds(tmp_path, "privacy-spent", "whole")[-1]["epsilon"]


def test_with_secure_noise_released_rounds_stay_and_the_rest_is_fresh(tmp_path):
    changes = {**CENTRAL, "privacy.insecure": False}
    killed(tmp_path, "broken", between_record_and_event, changes)
    kept = checkpoint.latest(tmp_path / "broken" / "rounds", print)
    assert kept.round == 3
    [file] = (tmp_path / "broken" / "rounds").glob("round-000003-*")
    run_local(job(tmp_path, "", {**changes, "run.resume": "broken"}), 5)
    told = [e["round"] for e in kinds(tmp_path, "round-finished", "broken")]
    assert told == [1, 2, 3, 4, 5]  # round 3 with the model that was recorded
    assert not file.exists()  # only the last two are kept
    assert kinds(tmp_path, "privacy-spent", "broken")[-1]["epsilon"] <= 8.0


SHARES = {
    "privacy.mechanism": "skellam",
    "privacy.trust": "distributed",
    "secure.scheme": "secagg",
}


@pytest.mark.parametrize("trust", ["central", "local", "distributed"])
def test_more_rounds_than_the_noise_was_planned_for_are_refused(tmp_path, trust):
    changes = {"central": WHOLE, "local": LOCAL, "distributed": SHARES}[trust]
    changes = {**changes, "train.rounds": 2}
    done = run(tmp_path, changes=changes)
    more = {**changes, "run.resume": "run", "train.rounds": 8}
    if trust != "central":
        more["privacy.on-exhausted"] = "evaluate-only"
    with pytest.raises(CheckpointError, match=r"train\.rounds was 2, is 8"):
        run_local(job(tmp_path, "", more), 5)
    assert RunResult.read(tmp_path / "run") == done  # the refusal left no trace


def test_an_exhausted_run_goes_on_evaluating_as_long_as_it_is_asked_to(tmp_path):
    """More rounds than may fail; the model and what was spent stay as they are."""
    run(tmp_path, changes=WHOLE)
    model, spent = model_bytes(tmp_path, "run"), kinds(tmp_path, "privacy-spent")
    more = {**WHOLE, "run.resume": "run", "train.rounds": 10, "round.max-failed": 3}
    run_local(job(tmp_path, "", {**more, "privacy.on-exhausted": "evaluate-only"}), 5)
    result = RunResult.read(tmp_path / "run")
    assert result.ok
    assert [r.skipped for r in result.rounds] == 5 * [False] + 5 * [True]
    assert all("accuracy" in report.metrics for report in result.rounds)
    told = [event["round"] for event in kinds(tmp_path, "privacy-exhausted")]
    assert told == [6, 7, 8, 9, 10]
    assert kinds(tmp_path, "privacy-spent") == spent
    assert model_bytes(tmp_path, "run") == model


def test_a_run_that_goes_on_keeps_its_first_plan(tmp_path):
    """Ended by hand after round 3 of 5: rounds 4 and 5 have the noise planned then."""
    run(tmp_path, "whole", WHOLE)
    killed(tmp_path, "broken", between_record_and_event, WHOLE)
    more = {"train.rounds": 9, "privacy.on-exhausted": "evaluate-only"}
    run_local(job(tmp_path, "", {**WHOLE, **more, "run.resume": "broken"}), 5)
    assert model_bytes(tmp_path, "broken") == model_bytes(tmp_path, "whole")
    whole, broken = (
        {e["round"]: e["noise"] for e in kinds(tmp_path, "privacy-spent", name)}
        for name in ("whole", "broken")
    )
    assert broken == whole
    told = [e["round"] for e in kinds(tmp_path, "privacy-exhausted", "broken")]
    assert told == [6, 7, 8, 9]


def test_local_noise_reaches_the_model(tmp_path):
    run(tmp_path, "noisy", LOCAL)
    run(tmp_path, "plain", {})
    noisy, plain = (
        load_file(tmp_path / name / "model.safetensors") for name in ("noisy", "plain")
    )
    assert any(np.abs(noisy[k] - plain[k]).max() > 0.01 for k in plain)


def test_the_final_model_is_the_average_of_the_last_half(tmp_path):
    changes = {**CENTRAL, "server.average": 0.5, "train.rounds": 4}
    saved = []
    write = checkpoint.write

    def watched(folder, record):
        saved.append({k: a.numpy().copy() for k, a in record.arrays.items()})
        return write(folder, record)

    checkpoint.write = watched
    try:
        run(tmp_path, changes=changes)
    finally:
        checkpoint.write = write
    final = load_file(tmp_path / "run" / "model.safetensors")
    for name, values in final.items():
        mean = (saved[-1][name] + saved[-2][name]) / 2
        np.testing.assert_allclose(values, mean, atol=1e-6)
    [event] = kinds(tmp_path, "final-model")
    assert "accuracy" in event["metrics"]
    assert json.dumps(event)


TOLD = {
    "privacy.mechanism": "gaussian",
    "privacy.evaluate-epsilon": 8.0,
    "privacy.epsilon": 16.0,
    "round.evaluate": "clients",
}


class Accurate(TinyTask):
    """Every client has an accuracy that can be found again."""

    ACCURACY = 0.8642

    def evaluate(self, model, data, job):
        return {"accuracy": self.ACCURACY, "loss": 0.97531}


def answers(monkeypatch):
    """Return a list of (kind, content) of all replies that will be sent."""
    answer, sent = LocalGrid._answer, []

    def watched(self, message):
        reply = answer(self, message)
        kind = message.metadata.message_type.split(".")[0]
        sent.append((kind, reply.content if reply.has_content() else None))
        return reply

    monkeypatch.setattr(LocalGrid, "_answer", watched)
    return sent


class TestEvaluationByTheNodes:
    def test_noise_is_added_before_anything_leaves(
        self, tmp_path, monkeypatch, caplog, capsys
    ):
        """Local trust: a number for each node, after the last round, and no other."""
        sent = answers(monkeypatch)
        with caplog.at_level(logging.DEBUG):
            result = run(tmp_path, changes={**LOCAL, **TOLD}, task=Accurate, nodes=8)
        assert result.ok
        replies = [
            dict(content["metrics"]) for kind, content in sent if kind == "evaluate"
        ]
        assert len(replies) == 8
        assert all(set(reply) == {"accuracy", "num-examples"} for reply in replies)
        assert {reply["num-examples"] for reply in replies} == {1}
        told = [reply["accuracy"] for reply in replies]
        assert len(set(told)) == 8
        assert Accurate.ACCURACY not in told
        # Eight standard deviations of 0.058, over the root of 8.
        assert np.mean(told) == pytest.approx(Accurate.ACCURACY, abs=0.17)
        *before, last = result.rounds
        assert all(not report.metrics for report in before)
        assert last.metrics == {"accuracy": pytest.approx(np.mean(told))}
        files = (tmp_path / "run").rglob("*.json*")
        written = "".join(path.read_text() for path in files)
        everything = "".join([repr(sent), written, caplog.text, *capsys.readouterr()])
        for secret in ("0.8642", "0.97531"):
            assert secret not in everything

    def test_the_server_adds_it_if_it_is_trusted(self, tmp_path, monkeypatch):
        sent = answers(monkeypatch)
        changes = {**WHOLE, **TOLD, "privacy.evaluate-every": 2}
        result = run(tmp_path, changes=changes, task=Accurate)
        replies = [
            dict(content["metrics"]) for kind, content in sent if kind == "evaluate"
        ]
        # Everyone, after rounds 2, 4 and 5, to the server alone.
        assert len(replies) == 15
        assert all(
            reply == {"accuracy": Accurate.ACCURACY, "num-examples": 1}
            for reply in replies
        )
        told = {r.round: r.metrics["accuracy"] for r in result.rounds if r.metrics}
        assert list(told) == [2, 4, 5]
        assert Accurate.ACCURACY not in told.values()
        assert np.mean(list(told.values())) == pytest.approx(0.8642, abs=0.5)
        spent = kinds(tmp_path, "privacy-spent")
        assert [event["round"] for event in spent] == [1, 2, 2, 3, 4, 4, 5, 5]
        assert [e["epsilon"] for e in spent] == sorted(e["epsilon"] for e in spent)
        assert spent[-1]["epsilon"] <= 16.0

    def test_the_same_noise_is_released_when_a_round_runs_again(self, tmp_path):
        """In the insecure mode; and it is charged once."""
        changes = {**WHOLE, **TOLD, "privacy.evaluate-every": 1}
        run(tmp_path, "whole", changes)
        killed(tmp_path, "broken", mid_checkpoint, changes)
        run_local(job(tmp_path, "", {**changes, "run.resume": "broken"}), 5)
        whole, broken = (
            {e["round"]: e["metrics"] for e in kinds(tmp_path, "round-finished", name)}
            for name in ("whole", "broken")
        )
        assert whole == broken

    def test_without_a_budget_for_it_nothing_is_answered(self, tmp_path):
        with pytest.raises(Exception, match=r"privacy\.evaluate-epsilon"):
            run(tmp_path, changes={**LOCAL, "round.evaluate": "clients"})

    def test_examples_are_protected_too(self, tmp_path):
        changes = {
            **TOLD,
            "privacy.mechanism": "dp-sgd",
            "privacy.unit": "example",
            "train.rounds": 1,
        }
        result = run(tmp_path, changes=changes, task=Accurate, nodes=3)
        [report] = result.rounds
        assert set(report.metrics) == {"accuracy"}
        assert report.metrics["accuracy"] != pytest.approx(0.8642, abs=1e-6)


PLATEAU = {**WHOLE, "privacy.schedule": "on-plateau", "train.rounds": 8}


class TestSchedules:
    def test_less_and_less_noise(self, tmp_path):
        run(tmp_path, changes={**WHOLE, "privacy.schedule": "increasing"})
        noise = [event["noise"] for event in kinds(tmp_path, "privacy-spent")]
        assert noise == sorted(set(noise), reverse=True)
        [plan] = kinds(tmp_path, "privacy-plan")
        assert [level["std"] for level in plan["levels"]] == noise
        assert 7.9 < kinds(tmp_path, "privacy-spent")[-1]["epsilon"] <= 8.0

    def test_the_server_tells_the_layer_how_good_a_model_is(self, tmp_path):
        """A model that never gets better: less noise from the fifth round on."""
        run(tmp_path, changes=PLATEAU, task=Accurate)
        noise = [event["noise"] for event in kinds(tmp_path, "privacy-spent")]
        assert noise[3] == noise[0] > noise[4] == noise[6]

    @pytest.mark.parametrize("point", [after_aggregate, between_record_and_event])
    def test_a_killed_run_resumes_with_what_it_knew(self, tmp_path, point):
        run(tmp_path, "whole", PLATEAU)
        killed(tmp_path, "broken", point, PLATEAU)
        run_local(job(tmp_path, "", {**PLATEAU, "run.resume": "broken"}), 5)
        assert model_bytes(tmp_path, "broken") == model_bytes(tmp_path, "whole")
        last, same = (
            kinds(tmp_path, "privacy-spent", name)[-1] for name in ("broken", "whole")
        )
        assert (last["epsilon"], last["noise"]) == (same["epsilon"], same["noise"])

    def test_without_public_test_data_it_does_not_begin(self, tmp_path):
        with pytest.raises(Exception, match="needs public test data on the server"):
            run(tmp_path, changes=PLATEAU, task=NoServerData)


def test_a_cohort_of_a_fixed_size(tmp_path):
    changes = {**CENTRAL, "privacy.sampling": "fixed", "round.fraction": 0.6}
    result = run(tmp_path, changes=changes)
    assert {report.cohort for report in result.rounds} == {3}
    [plan] = kinds(tmp_path, "privacy-plan")
    assert (plan["relation"], plan["cohort"]) == ("replace", pytest.approx(3))
    assert all(event["cohort"] == [] for event in kinds(tmp_path, "round-started"))
