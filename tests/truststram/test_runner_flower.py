"""Runs of Flower: believed if status and events agree, else cause and log are told."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.truststram.played import play
from truststram import runner
from truststram.errors import RunError
from truststram.job import Job
from truststram.result import RunResult
from truststram.superlink import Outcome

pytestmark = pytest.mark.usefixtures("undrawn")


class FakeSuperLink:
    """Stands for Flower: plays events, adds to a log, and says how it ended."""

    act = staticmethod(play)
    outcome = Outcome("finished:completed", "N/A")
    text = "Successfully started run 7\n"

    def __init__(self, nodes: int):
        self.nodes = nodes

    def __enter__(self):
        self.log = Path(os.environ["FAKE_LOG"])
        self.log.write_text("superlink says hello\n")
        return self

    def __exit__(self, *_):
        """Stop nothing: nothing was started."""

    def run(self, app, config, log):
        assert (app / "pyproject.toml").is_file()
        with log.open("a") as file:
            file.write(self.text)
        type(self).act(Job.of(config))
        return replace(self.outcome, output=self.text)


@pytest.fixture
def flower(monkeypatch, tmp_path) -> type[FakeSuperLink]:
    fake = type("Fake", (FakeSuperLink,), {})
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "superlink.log"))
    monkeypatch.setattr("truststram._flower_run.LocalSuperLink", fake)
    return fake


def test_flower_is_believed_when_its_status_and_the_events_agree(flower, tmp_path):
    result = runner.run({"train.rounds": 2}, engine="flower", nodes=4, dir=tmp_path)
    assert result.ok
    assert (result.dir / "flower.log").exists()


def never_started(job):
    """Write no event."""


def died(job):
    play(job, end=None)


def failed(job):
    play(job, end="failed", reason="no node came\nsecond line")


@pytest.mark.parametrize(
    ("act", "outcome", "text", "cause"),
    [
        pytest.param(
            failed,
            Outcome("finished:failed", "Simulation failed with exception: x"),
            "",
            "no node came. See",
            id="the server's reason first",
        ),
        pytest.param(
            failed, Outcome("finished:completed"), "", "no node came", id="only events"
        ),
        pytest.param(
            died,
            Outcome("finished:failed", "Simulation failed with exception: boom"),
            "",
            "boom. See",
            id="then Flower's",
        ),
        pytest.param(
            died,
            Outcome("finished:completed", "N/A"),
            "a\nERROR :   ActorPool is empty error\n\n",
            "ActorPool is empty error. See",
            id="no end event",
        ),
        pytest.param(
            never_started,
            Outcome(),
            "Using SuperLink\nError: [code: 15] Invalid run configuration\n╰───╯\n",
            "[code: 15] Invalid run configuration. See",
            id="the log last",
        ),
        pytest.param(
            never_started, Outcome(), "", "Flower wrote nothing", id="nothing at all"
        ),
    ],
)
def test_a_failed_flower_run_names_its_cause_and_log(
    flower, tmp_path, act, outcome, text, cause
):
    flower.act, flower.outcome, flower.text = staticmethod(act), outcome, text
    with pytest.raises(RunError) as error:
        runner.run({"run.id": "x"}, engine="flower", dir=tmp_path)
    message = str(error.value)
    assert cause in message
    assert len(message.splitlines()) == 1
    assert str(tmp_path / "x/flower.log") in message
    assert "superlink says hello" in (tmp_path / "x/flower.log").read_text()
    assert RunResult.read(tmp_path / "x").status == "failed"


def test_the_reason_of_an_earlier_attempt_is_not_told_again(flower, tmp_path):
    flower.act = staticmethod(failed)
    with pytest.raises(RunError, match="no node came"):
        runner.run({"run.id": "x"}, engine="flower", dir=tmp_path)
    flower.act = staticmethod(never_started)
    flower.outcome = Outcome("finished:failed", "new reason")
    with pytest.raises(RunError, match="new reason"):
        runner.run({"run.resume": "x"}, engine="flower", dir=tmp_path)


def test_a_log_tells_the_attempts_apart(flower, tmp_path):
    flower.act = staticmethod(failed)
    for job in ({"run.id": "x"}, {"run.resume": "x"}, {"run.resume": "x"}):
        with pytest.raises(RunError):
            runner.run(job, engine="flower", dir=tmp_path)
    text = (tmp_path / "x/flower.log").read_text()
    parts = re.split(r"\n--- Attempt (\d), \d{4}-\d\d-\d\d \d\d:\d\d:\d\d ---\n", text)
    assert parts[1::2] == ["2", "3"]
    assert all(part.startswith(flower.text) for part in parts[::2])
