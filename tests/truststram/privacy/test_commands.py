"""``truststram privacy``: on whole runs, by the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from strategies.mechanisms import sums
from tests.support import runs
from tests.support.task import TinyTask
from truststram.cli import app
from truststram.result import RunResult

PRIVATE = {"privacy.mechanism": "gaussian", "train.rounds": 3}


class NoBetter(TinyTask):
    """A model that stays as good as it was."""

    def evaluate(self, model, data, job):
        return {"accuracy": 0.5, "loss": 1.0}


def truststram(*arguments: str):
    return CliRunner().invoke(app, ["privacy", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a run of every kind."""
    base = tmp_path_factory.mktemp("runs")
    kinds = {
        "central": PRIVATE,
        "insecure": PRIVATE | {"privacy.insecure": True, "train.rounds": 1},
        "local": {
            **PRIVATE,
            "privacy.trust": "local",
            "train.rounds": 1,
            "privacy.evaluate-epsilon": 2.0,
            "round.evaluate": "clients",
        },
        "plateau": {**PRIVATE, "privacy.schedule": "on-plateau", "train.rounds": 2},
        "examples": {
            **PRIVATE,
            "privacy.mechanism": "dp-sgd",
            "privacy.unit": "example",
            "train.rounds": 1,
        },
        "plain": {"train.rounds": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server_app.main.curves", lambda result: result.dir)
        for name, changes in kinds.items():
            runs.run(base, name, changes, nodes=3)
    return base


def test_plan_prints_guarantee_table_and_verdict():
    asked = ("plan", "-c", "privacy.mechanism=auto", "--nodes", "4")
    asked += ("-c", "task.name=breast-cancer", "-c", "train.rounds=1")
    result = truststram(*asked)
    assert result.exit_code == 0
    for words in ("Unit: client", "laplace-ball", "used", "Noise: ", "At this budget"):
        assert words in result.output
    parsed = json.loads(truststram(*asked, "--json").output)
    assert parsed["mechanism"] == "gaussian"
    assert truststram("plan").exit_code == 2


def test_plan_says_what_mixing_would_gain():
    asked = ("plan", "-c", "privacy.mechanism=laplace", "-c", "privacy.trust=local")
    asked += ("-c", "train.rounds=1", "-c", "privacy.epsilon=1", "--shuffled", "1000")
    result = truststram(*asked, "-c", "task.name=breast-cancer")
    assert result.exit_code == 0
    assert "Not in this version" in result.output
    refused = truststram("plan", "-c", "privacy.mechanism=gaussian", "--shuffled", "9")
    assert refused.exit_code == 2
    assert "--shuffled 9" in refused.output


def test_audit_passes_honest_noise_and_fails_half_of_it(monkeypatch):
    asked = ("audit", "-c", "privacy.epsilon=4", "--canaries", "1500")
    asked += ("--confidence", "0.999999")
    result = truststram(*asked)
    assert result.exit_code == 0
    assert "Passed" in result.output
    assert "the claim" in result.output
    draw = sums.draw
    monkeypatch.setattr(sums, "draw", lambda *a: draw(*a) // 2)
    result = truststram(*asked, "--json")
    assert result.exit_code == 1
    assert not json.loads(result.output)["canaries"]["ok"]


def test_audit_of_a_run_attacks_it_and_the_report_says_so(folder):
    asked = ("audit", "central", "--dir", folder, "--canaries", "500", "--json")
    found = json.loads(truststram(*asked, "--confidence", "0.999999").output)
    assert found["canaries"]["ok"]
    assert [attack["members"] for attack in found["membership"]] == [69, 69]
    assert found["inversion"]["plain"] > 90
    text = truststram("report", "central", "--dir", folder, "--markdown").output
    assert "## Audit" in text
    assert "500 canaries against gaussian noise: Passed" in text


def test_report_of_noise_by_the_server(folder):
    content = json.loads(
        truststram("report", "central", "--dir", folder, "--json").output
    )
    assert content["problems"] == []
    assert content["secure-noise"]
    spent = [row["spent"] for row in content["rounds"]]
    assert spent == sorted(spent)
    assert [row["round"] for row in content["rounds"]] == [1, 2, 3]
    assert spent[-1] == pytest.approx(content["spent"], rel=1e-3)
    assert content["epsilon"] == content["spent"] <= content["budget"] == 8
    assert any("server itself" in line for line in content["not-covered"])
    shown = truststram("report", folder / "central")
    assert shown.exit_code == 0
    assert "Not covered" in shown.output


def test_report_of_noise_that_followed_the_outputs(folder):
    content = json.loads(
        truststram("report", "plateau", "--dir", folder, "--json").output
    )
    assert "what may be claimed is the budget" in content["guarantee"]
    assert content["problems"] == []
    assert 0 < content["spent"] < content["epsilon"] == content["budget"] == 8
    told = RunResult.read(folder / "plateau").privacy
    assert told["guaranteed"] == 8
    assert told["spent"] == pytest.approx(content["spent"], rel=1e-3)
    text = truststram("report", "plateau", "--dir", folder, "--markdown").output
    assert "Guaranteed: epsilon 8 at delta" in text


@pytest.mark.parametrize("trust", ["central", "local"])
def test_report_of_a_run_that_its_outputs_ended(tmp_path, monkeypatch, trust):
    """No round is better than the first: the third of five is the last."""
    monkeypatch.setattr("server_app.main.curves", lambda result: result.dir)
    changes = {"privacy.trust": trust, "train.rounds": 5, "run.patience": 2}
    result = runs.run(tmp_path, "early", PRIVATE | changes, nodes=3, task=NoBetter)
    assert len(result.rounds) == 3
    content = json.loads(
        truststram("report", "early", "--dir", tmp_path, "--json").output
    )
    assert 0 < content["spent"] < 7.5 < content["epsilon"] == content["budget"]
    assert "ended before its last planned round" in content["guarantee"]
    if trust == "central":
        assert result.privacy["guaranteed"] == 8
        assert result.privacy["spent"] < 7.5


def test_report_counts_the_accuracies_that_nodes_told(folder):
    content = json.loads(
        truststram("report", "local", "--dir", folder, "--json").output
    )
    assert "1 x staircase (epsilon0 2; everyone takes part)" in content["guarantee"]
    assert 6 < content["epsilon"] <= 8


def test_a_run_that_ended_as_planned_claims_what_it_spent(folder):
    told = RunResult.read(folder / "central").privacy
    assert told["guaranteed"] == told["spent"] <= 8


@pytest.mark.parametrize("kind", ["local", "examples"])
def test_report_of_noise_by_the_nodes(folder, kind):
    content = json.loads(truststram("report", kind, "--dir", folder, "--json").output)
    unit = {"local": "client", "examples": "example"}[kind]
    assert f"Unit: {unit}" in content["guarantee"]
    assert content["epsilon"] <= content["budget"]
    assert content["trust"] == "local"
    assert content["problems"] == []
    assert any("begins anew" in line for line in content["not-covered"])


def test_report_of_a_run_without_privacy_says_so(folder):
    text = truststram("report", "plain", "--dir", folder, "--markdown").output
    assert "None: privacy.mechanism = none" in text


def test_report_flags_noise_that_repeats(folder):
    text = truststram("report", "insecure", "--dir", folder, "--markdown").output
    assert "NOT PRIVATE" in text
    assert "secure source: NO" in text


def test_report_refuses_damage(folder):
    log = folder / "local" / "events.jsonl"
    before = log.read_text()
    log.write_text(
        before.replace('"epsilon": 8.0', '"epsilon": 1.0').replace("8.0", "1.0")
    )
    result = truststram("report", "local", "--dir", folder)
    log.write_text(before)
    assert result.exit_code == 1
    assert "hash chain is broken" in result.output
    record = max((folder / "insecure" / "rounds").glob("*.safetensors"))
    record.write_bytes(record.read_bytes()[:-1])
    result = truststram("report", "insecure", "--dir", folder)
    assert result.exit_code == 1
    assert "No whole record" in result.output


def test_arguments_that_do_not_go_together():
    assert truststram("report", "nowhere").exit_code == 2
    assert truststram("audit", "x", "-c", "privacy.epsilon=1").exit_code == 2
    assert truststram("report", "x", "--json", "--markdown").exit_code == 2
    assert truststram("audit", "-c", "privacy.mechanism=none").exit_code == 2


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from truststram.cli import app;"
        "heavy = {'torch', 'flwr', 'scipy', 'numpy', 'rich.table'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
