"""What has no guarantee cannot even be written down."""

from __future__ import annotations

import json
import math

import pytest

from strategies.accounting.events import Release
from strategies.accounting.sampling import EVERYONE, Sampling

POISSON = Sampling("poisson", 0.1)
FIXED = Sampling("fixed", 0.1, 1000)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sampling": FIXED}, "pushes another out.*relation='replace'"),
        ({"sampling": POISSON, "relation": "replace"}, "Use relation='add-remove'"),
        ({"mechanism": "exponential"}, "one of gaussian"),
        ({"scale": 0.0}, "takes scale > 0"),
        ({"scale": -1.0}, "takes scale > 0"),
        ({"scale": math.nan}, "finite"),
        ({"scale": 1e-4}, "scale = 0.0001"),
        ({"mechanism": "laplace", "scale": 1e-3}, "epsilon > 700"),
        ({"scale": True}, "finite"),
        ({"epsilon0": 1.0}, "no epsilon0"),
        ({"mechanism": "staircase"}, "takes epsilon0 > 0 and no scale"),
        ({"gamma": 0.5}, "none for gaussian"),
        ({"relation": "remove"}, "Unknown relation"),
        ({"dimension": 0}, "dimension"),
        ({"dimension": 2.0}, "dimension"),
        ({"delta_slack": -1e-9}, "delta_slack"),
        ({"sampling": "poisson"}, "expected a Sampling"),
    ],
)
def test_wrong_releases_are_refused_with_a_reason(values, reason):
    with pytest.raises(ValueError, match=reason):
        Release(**{"mechanism": "gaussian", "scale": 1.0, **values})


@pytest.mark.parametrize("gamma", [1.0, -0.1, 2.0])
def test_gamma_is_a_part_of_a_step(gamma):
    with pytest.raises(ValueError, match="gamma"):
        Release("staircase", epsilon0=1.0, gamma=gamma)


def test_staircase_on_every_coordinate_is_refused_with_what_it_costs():
    with pytest.raises(ValueError, match=r"costs epsilon >= 279\d.*staircase-ball"):
        Release("staircase", epsilon0=8.0, dimension=1000)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("batch", 0.1), "Unknown sampling"),
        (("poisson", 0.0), "rate"),
        (("poisson", 1.5), "rate"),
        (("poisson", math.nan), "rate"),
        (("none", 0.5), "Without sampling"),
        (("fixed", 0.5), "whole size"),
        (("fixed", 0.5, 3), "whole size"),
        (("poisson", 0.5, -1), "population"),
        (("poisson", 0.5, True), "population"),
    ],
)
def test_wrong_samplings_are_refused_with_a_reason(values, reason):
    with pytest.raises(ValueError, match=reason):
        Sampling(*values)


def test_replacing_is_twice_as_far_as_adding():
    one = Release("laplace", scale=2.0)
    other = Release("laplace", scale=2.0, relation="replace")
    assert (one.sensitivity, one.pure_epsilon) == (1.0, 0.5)
    assert (other.sensitivity, other.pure_epsilon) == (2.0, 1.0)
    assert (one.norm, Release("gaussian", scale=1.0).norm) == ("l1", "l2")


@pytest.mark.parametrize(
    "release",
    [
        Release("gaussian", scale=1.1, sampling=POISSON, delta_slack=1e-12),
        Release("laplace", scale=0.3, sampling=FIXED, relation="replace", dimension=7),
        Release("staircase", epsilon0=8.0),
        Release("staircase-ball", epsilon0=0.5, dimension=12, gamma=0.2),
        Release("laplace-ball", epsilon0=0.5, dimension=12),
    ],
)
def test_a_release_survives_json(release):
    again = Release.from_dict(json.loads(json.dumps(release.as_dict())))
    assert again == release
    assert hash(again) == hash(release)


@pytest.mark.parametrize(
    "damage",
    [
        {"sampling": None},
        {"sampling": {"kind": "poisson", "rate": "0.1"}},
        {"noise": 1.0},
        {"scale": "1"},
        {"scale": None},
    ],
)
def test_damaged_records_are_refused(damage):
    values = {**Release("gaussian", scale=1.0).as_dict(), **damage}
    with pytest.raises(ValueError, match=r"expected|record"):
        Release.from_dict(values)


def test_sampling_in_words():
    assert str(EVERYONE) == "everyone takes part"
    assert "exactly 100 of 1000" in str(FIXED)
    assert "probability 0.1" in str(POISSON)
