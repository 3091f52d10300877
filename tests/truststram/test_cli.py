"""The command line: parsing, tables, exit codes."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from truststram import __version__, events
from truststram._options import to_toml
from truststram.cli import app
from truststram.errors import CheckpointError, ConfigError, DataError, RunError
from truststram.job import Job, keys
from truststram.progress import alert_line, displayed, round_line, size
from truststram.result import RoundReport, RunResult
from truststram.summary import summary

ROOT = Path(__file__).resolve().parents[2]


def truststram(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def written(folder: Path, rounds: int = 2, **end) -> RunResult:
    """Make a run's folder as a ServerApp leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    log = events.EventLog(folder / "events.jsonl")
    log.append("run-started", job=Job().config(), nodes=4, resumed_from=0)
    for r in range(1, rounds + 1):
        metrics = {"accuracy": r / (rounds + 1), "loss": 1 / r}
        report = RoundReport(r, metrics, {}, 4, 3, 1, codes={"shape": 1})
        log.append("round-finished", **asdict(report))
    log.append("best-model", round=rounds, metric="accuracy", value=0.9)
    log.append(
        "run-finished", **{"status": "completed", "reason": "", "seconds": 3} | end
    )
    log.close()
    return RunResult.read(folder)


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Replace the runner; return the list of its calls."""
    calls = []

    def run(job, **arguments):
        calls.append((job, arguments))
        return written(tmp_path / "a-run")

    monkeypatch.setattr("truststram.runner.run", run)
    return calls


def rendered(what, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue()


def test_values_get_the_type_of_their_key(ran):
    done = truststram(
        *("run", "-c", "train.rounds=5", "-c", "train.lr=1", "-c", "data.alpha=1e-3"),
        *("-c", "compression.error-feedback=true", "-c", "task.name='digits'"),
        *("-c", "data.path=/a = b", "--nodes", "7", "--threads", "2", "--dir", "out"),
    )
    assert done.exit_code == 0, done.output
    job, arguments = ran[0]
    assert job == {
        "train.rounds": 5,
        "train.lr": 1.0,
        "data.alpha": 0.001,
        "compression.error-feedback": True,
        "task.name": "digits",
        "data.path": "/a = b",
    }
    assert type(job["train.lr"]) is float
    assert arguments == {
        "engine": "local",
        "nodes": 7,
        "threads": 2,
        "progress": True,
        "dir": Path("out"),
    }


def test_a_file_comes_before_options(ran, tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('data.alpha = 0.1\n[train]\nrounds = 3\nlocal-epochs = 4\n"lr" = 1')
    done = truststram("run", "--config", str(file), "-c", "train.rounds=5", "--quiet")
    assert done.exit_code == 0, done.output
    assert done.output == ""
    expected = {"data.alpha": 0.1, "train.rounds": 5}
    assert ran[0][0] == {**expected, "train.local-epochs": 4, "train.lr": 1}


def test_printed_defaults_are_a_file(ran, tmp_path):
    (tmp_path / "job.toml").write_text(truststram("config", "--toml").stdout)
    assert truststram("run", "--config", str(tmp_path / "job.toml")).exit_code == 0
    assert Job.of(ran[0][0]) == Job()


def test_resume_is_a_key(ran):
    assert truststram("run", "--resume", "x", "-c", "robust.f=1").exit_code == 0
    # `robust.f` alone has no effect, but the interrupted run may have set the rule.
    assert ran[0][0] == {"run.resume": "x", "robust.f": 1}


def test_all_mistakes_are_told_at_once(ran):
    done = truststram(
        *("run", "-c", "train.rounds=many", "-c", "compression.error-feedback=maybe"),
        *("-c", "train.lr=fast", "-c", "nonsense", "-c", "train.round=3"),
        *("-c", "train.batch-size=0"),
    )
    assert done.exit_code == 2
    assert ran == []
    lines = done.stderr.splitlines()
    assert lines == [
        "train.rounds = many: expected a whole number.",
        "compression.error-feedback = maybe: expected true or false.",
        "train.lr = fast: expected a number.",
        "-c nonsense: expected KEY=VALUE.",
        "Unknown key train.round. Did you mean train.rounds?",
        "train.batch-size = 0: expected >= 1.",
    ]


def test_toml_gives_back_every_value():
    values = {
        "a.text": 'quo"te \\ back\n\ttab \x7f \x01 é 😀 [x] # no comment',
        "a.flag": True,
        "a.whole": -3,
        "b.small": 1e-05,
        "b.one": 1.0,
    }
    table = tomllib.loads(to_toml(values))
    assert table["a"] == {"text": values["a.text"], "flag": True, "whole": -3}
    assert table["b"] == {"small": 1e-05, "one": 1.0}
    assert isinstance(table["b"]["one"], float)


@pytest.mark.parametrize("text", ["= x", "train.rounds = [1]", "tool = 3"])
def test_a_wrong_file_is_a_mistake_of_the_user(ran, tmp_path, text):
    (tmp_path / "job.toml").write_text(text)
    done = truststram("run", "--config", str(tmp_path / "job.toml"))
    assert (done.exit_code, ran) == (2, [])
    assert truststram("run", "--config", "no-such.toml").exit_code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a\nb"), 2),
        (RunError("a\nb"), 1),
        (DataError("a\nb"), 1),
        (CheckpointError("a\nb"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(monkeypatch, error, code):
    def run(*_, **__):
        raise error

    monkeypatch.setattr("truststram.runner.run", run)
    done = truststram("run")
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr == ("Stopped.\n" if code == 130 else "a\nb\n")


@pytest.mark.parametrize("arguments", [["run", "--bogus"], ["run", "--engine", "ray"]])
def test_wrong_usage_is_two(arguments):
    assert truststram(*arguments).exit_code == 2


def test_a_run_ends_with_its_table(ran, tmp_path):
    out = truststram("run").stdout
    assert "accuracy" in out
    assert "Best: accuracy 0.9000 in round 2" in out
    assert "Rejected replies: shape 2" in out
    assert str(tmp_path / "a-run") in out


def test_config_lists_every_key():
    out = truststram("config").stdout
    for key in keys():
        assert key.name in out
    assert ("not yet: " in out) == any(key.planned for key in keys())
    section = truststram("config", "--section", "train").stdout
    assert "train.rounds" in section
    assert "server.lr" not in section
    assert truststram("config", "--section", "trian").exit_code == 2


def test_config_as_toml_is_the_default_job():
    table = tomllib.loads(truststram("config", "--toml").stdout)
    flat = {
        f"{section}.{name}": value
        for section, values in table["tool"]["flwr"]["app"]["config"].items()
        for name, value in values.items()
    }
    assert flat == Job().config()
    assert list(flat) == [key.name for key in keys()]


def test_show_by_id_and_by_folder(tmp_path):
    written(tmp_path / "x", status="failed", reason="no nodes [came]")
    by_id = truststram("show", "x", "--dir", str(tmp_path))
    by_folder = truststram("show", str(tmp_path / "x"))
    assert by_id.exit_code == by_folder.exit_code == 0
    assert by_id.stdout == by_folder.stdout
    assert "failed: no nodes [came]" in by_id.stdout
    assert "Events: 5, hash chain verified" in by_id.stdout
    assert truststram("show", "y", "--dir", str(tmp_path)).exit_code == 2


def test_show_refuses_changed_events(tmp_path):
    written(tmp_path / "x")
    path = tmp_path / "x/events.jsonl"
    path.write_text(path.read_text().replace('"loss":0.5', '"loss":0.1'))
    done = truststram("show", str(tmp_path / "x"))
    assert done.exit_code == 1
    assert "line 3" in done.stderr


def test_tasks_are_listed():
    out = truststram("tasks").stdout
    assert out.startswith("digits")
    assert "tabular" in out


def test_version():
    assert truststram("--version").stdout == f"truststram {__version__}\n"


def test_help_teaches_and_imports_nothing_heavy():
    code = (
        "import sys; from truststram.cli import app;"
        "from typer.testing import CliRunner;"
        "print(CliRunner().invoke(app, ['run', '--help']).output);"
        "heavy = {'flwr', 'torch', 'psutil', 'numpy', 'matplotlib', 'rich.live'};"
        "print('HEAVY', heavy & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "truststram run --engine flower --nodes 4" in done.stdout
    assert "HEAVY set()" in done.stdout


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_960, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (5e9, "5.0 GB"),
        (7e15, "7000.0 TB"),
    ],
)
def test_sizes_for_people(count, text):
    assert size(count) == text


def test_long_runs_show_some_rounds_and_say_so(tmp_path):
    text = rendered(summary(written(tmp_path / "x", rounds=200)))
    rows = [line.split()[0] for line in text.splitlines() if "3/4" in line]
    assert 20 <= len(rows) <= 30
    assert (rows[0], rows[-1]) == ("1", "200")
    assert f"{len(rows)} of 200 rounds shown" in text


def test_short_runs_are_shown_whole(tmp_path):
    text = rendered(summary(written(tmp_path / "x", rounds=30)))
    assert sum("3/4" in line for line in text.splitlines()) == 30
    assert "rounds shown" not in text


def test_a_run_without_rounds_has_a_summary(tmp_path):
    text = rendered(summary(written(tmp_path / "x", rounds=0, status="stopped")))
    assert "No round was finished" in text
    assert "Status: stopped" in text


def test_a_round_as_a_line():
    report = RoundReport(
        3, {"accuracy": 0.51234}, {}, 10, 8, 1, 1, bytes_up=1200, seconds=2
    )
    assert round_line(report, 20) == (
        "round 3/20  accuracy 0.5123  up 1.2 kB  down 0 B  replies 8/10  rejected 1  "
        "lost 1  2.0 s"
    )


def test_a_round_line_names_whom_the_rule_rejected_and_why():
    rejected = {"3": ["distance", "cosine"], "7": []}
    line = round_line(RoundReport(3, cohort=10, replies=10), 20, rejected)
    assert "  rejected by the rule: 3 (distance, cosine), 7  " in line
    many = round_line(RoundReport(3), 20, {str(i): [] for i in range(10)})
    assert "rejected by the rule: 0, 1, 2, 3, 4, 5, and 4 more" in many


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_alerts_when_they_happen(tmp_path, terminal):
    path = tmp_path / "events.jsonl"
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    log = events.EventLog(path)
    with displayed(path, 2, console):
        alert = {"fraction": 0.4, "limit": 0.3, "nodes": ["1", "[2]"]}
        for number in (1, 2):
            log.append("round-started", round=number, cohort=["1", "[2]"])
            if number == 1:
                evidence = {"failed": ["change"]}
                log.append("update-rejected", round=1, node="1", evidence=evidence)
                log.append("alert", round=1, response="log", **alert)
            else:
                log.append("alert-ended", round=2, fraction=0.1)
            log.append("round-finished", **asdict(RoundReport(number)))
        time.sleep(0.3)
    log.close()
    text = console.file.getvalue()
    assert "ALERT in round 1: 40% of nodes misbehave" in text
    assert "1, [2]; response: log" in text
    assert "alert ended in round 2 (10%)" in text
    assert terminal or text.count("rejected by the rule: 1 (change)") == 1


def test_progress_says_who_must_collude_and_what_is_not_encrypted():
    plan = {"kind": "secure-plan", "scheme": "bfv", "trust": "Any two can.", "clear": 0}
    assert alert_line(plan) == "secure sum (bfv): Any two can."
    part = {"clear": 1234, "clear_fraction": 0.05, "clear_arrays": ["a", "b"]}
    line = alert_line({**plan, **part})
    assert line.endswith("NOT encrypted: 1,234 values (5.0%) of a, b.")
    refused = {"kind": "secure-refused", "round": 3, "detail": "2 valid frames"}
    assert alert_line(refused) == "secure sum of round 3 refused: 2 valid frames"
    noise = {"kind": "privacy-plan", "groups": 5, "warning": "All is noise."}
    assert alert_line(noise) == "All is noise."
    assert alert_line({"kind": "privacy-plan"}) == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_new_rounds_only(tmp_path, terminal):
    path = tmp_path / "events.jsonl"
    log = events.EventLog(path)
    log.append("round-finished", **asdict(RoundReport(1, {"old": 1.0})))
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    with displayed(path, 2, console):
        log.append("run-started", resumed_from=1)
        log.append("round-started", round=2, cohort=["0"])
        log.append("phase-progress", round=2, phase="train", replies=1, expected=1)
        log.append("round-finished", **asdict(RoundReport(2, {"[new]": 0.5})))
        log.append("run-finished", status="completed")
        time.sleep(0.3)
    log.close()
    text = console.file.getvalue()
    assert "[new] 0.5" in text
    assert "old" not in text
    assert ("2/2" in text) == terminal or "round 2/2" in text
