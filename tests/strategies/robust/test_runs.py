"""Whole runs with a pre-aggregation and an automatic f, in one go and resumed."""

from __future__ import annotations

import pytest

from strategies.robust.make import RULES
from strategies.robust.preaggregators import Bucketing
from tests.support.runs import model_bytes, run
from truststram import events
from truststram.errors import ConfigError

ATTACK = {"adversary.kind": "ipm", "adversary.fraction": 0.2, "adversary.strength": 5.0}
SHORT = {"train.rounds": 3}
BUCKETING = {**SHORT, "robust.rule": "centered-clipping", "robust.pre": "bucketing"}


def log(folder, run_id, kind):
    found = events.read(folder / run_id / "events.jsonl")
    return [event for event in found if event["kind"] == kind]


@pytest.mark.parametrize(
    "changes",
    [
        BUCKETING,
        {**BUCKETING, "robust.rule": "median", "round.fraction": 0.8},
        {**SHORT, "robust.rule": "krum", "robust.pre": "nnm"},
        {**SHORT, "robust.rule": "wfagg", "round.fraction": 0.8},
    ],
    ids=lambda changes: (
        f"{changes['robust.rule']}, {changes.get('robust.pre', 'none')}"
    ),
)
def test_a_resumed_run_draws_the_same_buckets_and_assumes_the_same_f(tmp_path, changes):
    run(tmp_path, "whole", changes, nodes=10)
    run(tmp_path, "parts", {**changes, "train.rounds": 2}, nodes=10)
    run(tmp_path, "parts", {**changes, "run.resume": "parts"}, nodes=10)
    assert model_bytes(tmp_path, "parts") == model_bytes(tmp_path, "whole")
    assumed = [
        [e["f"] for e in log(tmp_path, r, "assumed-f")] for r in ("parts", "whole")
    ]
    assert assumed[0] == assumed[1]


def test_a_round_that_runs_again_has_the_same_buckets(tmp_path):
    """Round 3 was done, but its record is lost: it is done again."""
    job = {**BUCKETING, "train.rounds": 4, "run.checkpoint-every": 2}
    run(tmp_path, "whole", job, nodes=10)
    run(tmp_path, "parts", {**job, "train.rounds": 3}, nodes=10)
    (record,) = (tmp_path / "parts" / "rounds").glob("round-000003*")
    record.unlink()
    run(tmp_path, "parts", {**job, "run.resume": "parts"}, nodes=10)
    assert model_bytes(tmp_path, "parts") == model_bytes(tmp_path, "whole")


def test_without_the_generators_state_the_buckets_would_be_others(
    tmp_path, monkeypatch
):
    """The tests above can fail."""
    run(tmp_path, "whole", BUCKETING, nodes=10)
    run(tmp_path, "parts", {**BUCKETING, "train.rounds": 2}, nodes=10)

    def load_rule_only(self, state):
        self.rule.load_state(state["rule"])

    monkeypatch.setattr(Bucketing, "load_state", load_rule_only)
    run(tmp_path, "parts", {**BUCKETING, "run.resume": "parts"}, nodes=10)
    assert model_bytes(tmp_path, "parts") != model_bytes(tmp_path, "whole")


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_ends_a_run_or_follows_a_fifth(tmp_path, rule):
    """Whatever a rule has to say of it is an event that can be written and read."""
    result = run(tmp_path, rule, {**SHORT, **ATTACK, "robust.rule": rule}, nodes=10)
    assert result.ok
    assert result.metrics["accuracy"] > 0.8
    (assumed,) = log(tmp_path, rule, "assumed-f")
    assert assumed["f"] == (1 if rule == "bulyan" else 3)


def test_buckets_that_attackers_can_fill_are_refused_before_the_run(tmp_path):
    job = {**BUCKETING, "robust.rule": "median", "robust.f": 3}
    assert run(tmp_path, "enough", {**job, "round.min-nodes": 13}, nodes=13).ok
    with pytest.raises(ConfigError, match="bucketing leaves half as many"):
        run(tmp_path, "few", {**job, "round.min-nodes": 12}, nodes=12)
