"""What a budget means before a run."""

from __future__ import annotations

import math

import pytest

from tests.support.task import CLASSES, FEATURES, TinyTask
from truststram.errors import ConfigError
from truststram.job import Job
from truststram.privacy.plan import lines, preview, verdict
from truststram.tasks import register_task
from truststram.techniques import calibrate

SIZE = FEATURES * CLASSES + CLASSES


@pytest.fixture(autouse=True)
def _tiny():
    register_task("tiny", TinyTask)


def plan(nodes=10, **changes):
    keys = {"mechanism": "gaussian", **changes}
    given = {f"privacy.{k.replace('_', '-')}": v for k, v in keys.items()}
    return preview(
        Job.of(
            {"task.name": "tiny", "train.rounds": 2, "train.batch-size": 8, **given}
        ),
        nodes,
    )


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


def test_refused_are_jobs_without_privacy_and_unsound_ones():
    with pytest.raises(ConfigError, match="nothing to plan"):
        plan(mechanism="none")
    with pytest.raises(ConfigError, match="refused"):
        plan(unit="example")
    with pytest.raises(ConfigError, match="nodes = 0"):
        plan(0)
