"""Nodes that keep their counts of releases, in a run that is killed and resumed."""

from __future__ import annotations

import json
import secrets
import shutil

import pytest

from strategies.memory import FIXED
from tests.server_app.test_resume import (
    after_aggregate,
    between_record_and_event,
    killed,
)
from tests.support.runs import job, run
from truststram.engine import LocalGrid, run_local
from truststram.result import RunResult

LOCAL = {"privacy.mechanism": "auto", "privacy.trust": "local", "privacy.epsilon": 15.0}
NODES, ROUNDS, KILLED = 3, 5, 3


@pytest.fixture
def deployed(tmp_path, monkeypatch):
    """Make the nodes of a grid begin as deployed ones do: with a folder and no more.

    And each of Flower's runs have an id of its own, as a SuperLink gives it.
    """
    made = LocalGrid.__init__

    def init(self, *arguments, **options):
        made(self, *arguments, **{**options, "run_id": secrets.randbits(62)})
        for context in self._contexts.values():
            del context.node_config["simulated"]
            context.node_config["state-path"] = str(tmp_path / "nodes")

    monkeypatch.setattr(LocalGrid, "__init__", init)


def counted(folder):
    """Return how many releases each node counted in each run, by the runs' names."""
    found = {}
    for path in (folder / "nodes").glob("*/privacy/*/count"):
        about = json.loads(path.read_bytes()[FIXED:])["about"]
        found.setdefault(about["run"], []).append(sum(n for _, n in about["releases"]))
    return found


def known(folder, run_id):
    """Return what nodes know a run by."""
    return f"run {(folder / run_id / 'name').read_text()!r}"


@pytest.mark.parametrize(
    ("point", "replies"),
    [
        pytest.param(between_record_and_event, [3, 3, 3, 3, 3], id="no repetition"),
        # Round 3 was asked for twice: nothing is left for the last one.
        pytest.param(after_aggregate, [3, 3, 3, 3, 0], id="a round twice"),
    ],
)
def test_a_resumed_run_gets_no_more_than_was_planned(
    tmp_path, deployed, point, replies
):
    killed(tmp_path, "broken", point, LOCAL, NODES)
    name = known(tmp_path, "broken")
    assert counted(tmp_path) == {name: [KILLED] * NODES}
    run_local(job(tmp_path, "", {**LOCAL, "run.resume": "broken"}), NODES)
    result = RunResult.read(tmp_path / "broken")
    assert result.ok
    assert [report.replies for report in result.rounds] == replies
    assert counted(tmp_path) == {name: [ROUNDS] * NODES}


def test_another_run_of_the_same_data_has_a_count_of_its_own(tmp_path, deployed):
    for name in ("one", "two"):
        result = run(tmp_path, name, LOCAL, nodes=NODES)
        assert [report.replies for report in result.rounds] == [NODES] * ROUNDS
    counts = [ROUNDS] * NODES
    assert counted(tmp_path) == {known(tmp_path, n): counts for n in ("one", "two")}


def test_another_job_may_have_the_same_run_id(tmp_path, deployed):
    """In another folder, or where the folder of the first was removed."""
    runs = [tmp_path / "a", tmp_path / "b", tmp_path / "b"]
    names = set()
    for folder in runs:
        shutil.rmtree(folder, ignore_errors=True)
        result = run(folder, "same", LOCAL, nodes=NODES)
        assert [report.replies for report in result.rounds] == [NODES] * ROUNDS
        names.add(known(folder, "same"))
    assert counted(tmp_path) == dict.fromkeys(names, [ROUNDS] * NODES)
    assert len(names) == len(runs)
