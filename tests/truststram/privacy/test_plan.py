"""What a budget means before a run."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest

from tests.support.task import CLASSES, FEATURES, TinyTask
from truststram.errors import ConfigError
from truststram.job import Job
from truststram.privacy.plan import preview
from truststram.privacy.plan_text import lines, verdict
from truststram.tasks import register_task
from truststram.techniques import calibrate

SIZE = FEATURES * CLASSES + CLASSES


@pytest.fixture(autouse=True)
def _tiny():
    register_task("tiny", TinyTask)


def plan(nodes=10, *, rounds=2, evaluate="auto", shuffled=0, **changes):
    keys = {"mechanism": "gaussian", **changes}
    given = {
        "task.name": "tiny",
        "train.rounds": rounds,
        "train.batch-size": 8,
        "round.evaluate": evaluate,
        **{f"privacy.{k.replace('_', '-')}": v for k, v in keys.items()},
    }
    return preview(Job.of(given), nodes, shuffled)


def test_the_ratio_is_noise_over_the_longest_sum():
    found = plan(epsilon=4.0)
    std = calibrate("gaussian", 4.0, 1e-5, 2, dimension=SIZE).scale
    assert found["noise-std"] == pytest.approx(std, rel=1e-3)
    assert found["noise-to-signal"] == pytest.approx(
        std * math.sqrt(SIZE) / 10, rel=1e-3
    )
    for words in (
        "Unit: client",
        "add-remove",
        "epsilon = 4",
        "central",
        "all 2 rounds",
    ):
        assert words in found["guarantee"]


def test_every_mechanism_is_listed_and_the_unsound_one_says_why():
    rows = {row["mechanism"]: row for row in plan()["mechanisms"]}
    assert set(rows) == {
        *("gaussian", "laplace", "laplace-ball", "staircase-ball", "staircase-iid")
    }
    assert "can cross a step" in rows.pop("staircase-iid")["why-not"]
    assert all(row["admissible"] and not row["why-not"] for row in rows.values())
    assert min(row["ratio"] for row in rows.values()) == 1


@pytest.mark.parametrize("trust", ["central", "local"])
def test_what_is_said_to_be_bearable_is(trust):
    """As many nodes as advised have a ratio of 1, fewer have not."""
    needed = plan(trust=trust)["bearable"]["nodes"]
    assert plan(needed, trust=trust)["noise-to-signal"] <= 1
    assert plan(needed - 1, trust=trust)["noise-to-signal"] > 1


def test_local_noise_is_louder():
    """Noise of every node adds up, and replaced clients are two clips apart."""
    central, local = plan(), plan(trust="local")
    times = local["noise-to-signal"] / central["noise-to-signal"]
    assert times == pytest.approx(2 * math.sqrt(10), rel=1e-2)
    assert "local" in local["guarantee"]


def test_examples_have_the_noise_of_their_node():
    found = plan(4, mechanism="dp-sgd", unit="example")
    rows = found["per-node"]
    assert [row["examples"] for row in rows] == [20, 26, 29]  # of 20, 23, 26, 29
    assert rows[0]["rate"] == 8 / 20
    assert rows[0]["steps"] == 2 * 2 * 3
    for row in rows:
        expected = row["noise-multiplier"] * math.sqrt(SIZE) / 8
        assert row["noise-to-signal"] == pytest.approx(expected)
    assert "Unit: example" in found["guarantee"]
    assert "26 examples" in found["guarantee"]


def test_the_verdict_is_plain():
    assert verdict(0.5).startswith("good")
    assert verdict(2).startswith("bearable")
    assert verdict(10).startswith("poor")
    assert verdict(40) == (
        "hopeless: the noise is 40 times the longest possible sum; use more nodes per "
        "round, fewer rounds, a smaller model or a larger epsilon"
    )
    hopeless = "\n".join(lines(plan(epsilon=0.1)))
    assert "hopeless" in hopeless
    assert "At this budget" in hopeless


def test_a_schedule_shows_its_levels():
    found = plan(schedule="increasing")
    assert [level["rounds"] for level in found["levels"]] == [1, 1]
    first, last = (level["std"] for level in found["levels"])
    assert last < found["noise-std"] < first
    assert f"1 x {first:.3g}, 1 x {last:.3g}." in "\n".join(lines(found))
    waiting = plan(schedule="on-plateau")
    assert "what may be claimed is the budget" in waiting["guarantee"]
    start = waiting["levels"][0]["std"]
    assert f"starts at {start:.3g} clips" in "\n".join(lines(waiting))
    assert start > found["noise-std"]
    assert "Rounds and their noise" not in "\n".join(lines(plan()))


@pytest.mark.parametrize("trust", ["local", "central"])
def test_evaluation_by_the_nodes_says_how_exact_it_is(trust):
    found = plan(20, epsilon=9.0, trust=trust, evaluate_epsilon=8.0, evaluate="clients")
    told = found["evaluation"]
    assert (told["times"], told["epsilon"], told["nodes"]) == (1, 8.0, 20)
    # 0.058 a node over the root of 20, or half of it once over 20.
    points = 1.30 if trust == "local" else 0.145
    assert told["error-points"] == pytest.approx(points, rel=0.01)
    assert "1 x staircase (epsilon0 8" in found["guarantee"]
    assert f"{told['error-points']:.2g} points" in "\n".join(lines(found))
    assert "evaluation" not in plan()


class TestShuffling:
    LOCAL: ClassVar = {"trust": "local", "mechanism": "laplace", "epsilon": 2.0}

    def test_it_says_what_mixing_would_gain_and_that_nobody_mixes(self):
        found = plan(rounds=1, shuffled=1000, **self.LOCAL)
        mixed = found["shuffled"]
        assert mixed["local-epsilon"] == pytest.approx(2.0, rel=1e-3)
        assert 0.4 < mixed["epsilon"] < 0.5
        assert mixed["available"] is False
        text = "\n".join(lines(found))
        assert "Not in this version: if a party other than the server mixed" in text
        # The guarantee is the same with and without.
        assert found["guarantee"] == plan(rounds=1, **self.LOCAL)["guarantee"]

    def test_no_gain_at_a_local_epsilon_of_eight(self):
        found = plan(rounds=1, shuffled=10_000, **{**self.LOCAL, "epsilon": 8.0})[
            "shuffled"
        ]
        assert found["epsilon"] == pytest.approx(found["local-epsilon"], rel=1e-3)

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"trust": "local"}, "gaussian"),
            ({}, "no noise by the nodes"),
            ({"mechanism": "dp-sgd", "unit": "example"}, "no noise by the nodes"),
        ],
    )
    def test_noise_without_such_a_bound_is_refused(self, changes, found):
        with pytest.raises(ConfigError, match=f"--shuffled 10: .* the job has {found}"):
            plan(shuffled=10, **changes)
        with pytest.raises(ConfigError, match="at least 1 reply"):
            plan(shuffled=-1, **self.LOCAL)


def test_refused_are_jobs_without_privacy_and_unsound_ones():
    with pytest.raises(ConfigError, match="nothing to plan"):
        plan(mechanism="none")
    with pytest.raises(ConfigError, match="refused"):
        plan(unit="example")
    with pytest.raises(ConfigError, match="nodes = 0"):
        plan(0)
