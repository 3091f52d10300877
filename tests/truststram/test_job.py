"""One declaration, two forms, and one line for each mistake."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truststram.errors import ConfigError
from truststram.job import Job, keys
from truststram.sections import TrainKeys

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "train.rounds": st.integers(1, 10**6),
        "train.lr": st.floats(1e-6, 1e3),
        "data.partitioner": st.sampled_from(["iid", "dirichlet", "pathological"]),
        "data.path": st.text(max_size=20),
        "round.fraction": st.floats(0.01, 1.0),
        "run.seed": st.integers(0, 2**31),
        "server.momentum": st.floats(0, 0.99),
    },
)


@given(CHANGES)
def test_flat_config_and_job_are_equal_both_ways(changes):
    job = Job.of(changes)
    assert Job.of(job.config()) == job
    assert job.config() == {**Job().config(), **changes}
    assert hash(Job.of(changes)) == hash(job)


def test_pyproject_declares_exactly_the_keys_and_defaults(root):
    with (root / "pyproject.toml").open("rb") as file:
        config = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
    flat = {f"{s}.{k}": v for s, section in config.items() for k, v in section.items()}
    assert flat == Job().config()


def test_every_key_says_what_it_is():
    for key in keys():
        assert key.help
        assert key.expected
        assert key.name == key.name.lower()
        assert "_" not in key.name


def test_job_is_frozen():
    with pytest.raises(AttributeError):
        Job().train.rounds = 3  # type: ignore[misc]  # the claim


WRONG = {
    "nonsense": ({"nonsense": 1}, "Unknown key nonsense"),
    "typo": ({"privacy.epsilonn": 1.0}, "Did you mean privacy.epsilon?"),
    "text for int": ({"train.rounds": "3"}, "train.rounds = '3' (str)"),
    "float for int": ({"train.rounds": 2.5}, "expected a value of type int"),
    "bool for int": ({"train.rounds": True}, "expected a value of type int"),
    "int for bool": ({"compression.error-feedback": 1}, "type bool"),
    "zero rounds": ({"train.rounds": 0}, "train.rounds = 0: expected >= 1"),
    "negative rate": ({"train.lr": -0.1}, "train.lr = -0.1: expected > 0"),
    "nan": ({"train.lr": float("nan")}, "expected a finite number"),
    "infinity": ({"round.deadline": float("inf")}, "expected a finite number"),
    "momentum 1": ({"train.momentum": 1.0}, "expected >= 0 and < 1"),
    "fraction 0": ({"round.fraction": 0.0}, "expected > 0 and <= 1"),
    "partitioner": ({"data.partitioner": "x"}, "one of iid, dirichlet"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_in_one_line(name):
    config, message = WRONG[name]
    with pytest.raises(ConfigError) as error:
        Job.of(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        Job.of({"train.rounds": 0, "train.lr": -1.0, "tff.plan": 3, "unknown": 1})
    assert len(str(error.value).splitlines()) == 4


def test_sections_are_checked_too():
    with pytest.raises(ConfigError, match=r"train\.rounds"):
        Job(train=TrainKeys(rounds=0))


@pytest.mark.parametrize(
    ("key", "value"),
    [(k.name, v) for k in keys() for v in k.planned if v not in ("*", "true")],
)
def test_what_is_not_built_yet_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match="not available in this version") as error:
        Job.of({key: value})
    assert key in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "switch"),
    [
        ("privacy.epsilon", 1.0, "privacy.mechanism"),
        ("robust.f", 2, "robust.rule"),
        ("secure.group-size", 3, "secure.scheme"),
        ("adversary.fraction", 0.2, "adversary.kind"),
    ],
)
def test_a_setting_without_its_switch_is_refused(key, value, switch):
    with pytest.raises(ConfigError, match="has no effect") as error:
        Job.of({key: value})
    assert switch in str(error.value)


def test_a_setting_of_what_is_switched_off_is_refused():
    off = {"anomaly.enabled": "off"}
    assert Job.of(off).anomaly.quarantine == 10
    with pytest.raises(ConfigError, match=r"no effect while anomaly\.enabled is off"):
        Job.of({**off, "anomaly.quarantine": 3})
