"""Nodes that keep their counts of releases, in a run that is killed and resumed."""

from __future__ import annotations

import json

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
    """Make the nodes of a grid begin as deployed ones do: with a folder and no more."""
    made = LocalGrid.__init__

    def init(self, *arguments, **options):
        made(self, *arguments, **options)
        for context in self._contexts.values():
            del context.node_config["simulated"]
            context.node_config["state-path"] = str(tmp_path / "nodes")

    monkeypatch.setattr(LocalGrid, "__init__", init)


def counted(folder):
    """Return how many releases each node counted in each run."""
    found = {}
    for path in (folder / "nodes").glob("*/privacy/*/count"):
        about = json.loads(path.read_bytes()[FIXED:])["about"]
        found.setdefault(about["run"], []).append(sum(n for _, n in about["releases"]))
    return found


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
    assert counted(tmp_path) == {"run 'broken'": [KILLED] * NODES}
    run_local(job(tmp_path, "", {**LOCAL, "run.resume": "broken"}), NODES)
    result = RunResult.read(tmp_path / "broken")
    assert result.ok
    assert [report.replies for report in result.rounds] == replies
    assert counted(tmp_path) == {"run 'broken'": [ROUNDS] * NODES}


def test_another_run_of_the_same_data_has_a_count_of_its_own(tmp_path, deployed):
    for name in ("one", "two"):
        result = run(tmp_path, name, LOCAL, nodes=NODES)
        assert [report.replies for report in result.rounds] == [NODES] * ROUNDS
    counts = [ROUNDS] * NODES
    assert counted(tmp_path) == {"run 'one'": counts, "run 'two'": counts}
