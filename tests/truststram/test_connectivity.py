"""Paths between two models: where they begin and end, and that the curve is lower."""

from __future__ import annotations

import json

import pytest

from tests.support.runs import run
from tests.support.task import NoServerData
from truststram.connectivity import connectivity, write
from truststram.errors import ConfigError

CHANGES = {"train.rounds": 3}


def test_both_paths_join_the_two_models(tmp_path):
    a = run(tmp_path, "a", CHANGES)
    b = run(tmp_path, "b", {**CHANGES, "run.seed": 5})
    found = connectivity(a, b, points=5, steps=50)
    for losses in (found.line_loss, found.curve_loss):
        assert losses[0] == pytest.approx(a.metrics["loss"], rel=1e-4)
        assert losses[-1] == pytest.approx(b.metrics["loss"], rel=1e-4)
    assert found.t == [0, 0.25, 0.5, 0.75, 1]
    assert found.distance > 0
    # A linear model's loss is convex: the line has no barrier.
    assert found.line_barrier <= 1e-6
    data, picture = write(found, a.id, b.id, tmp_path)
    assert json.loads(data.read_text())["line_loss"] == found.line_loss
    assert picture.stat().st_size > 10_000


def test_a_model_is_connected_with_itself(tmp_path):
    a = run(tmp_path, "a", CHANGES)
    found = connectivity(a, a, points=3, steps=1)
    assert found.distance == 0
    assert found.line_barrier == pytest.approx(0, abs=1e-6)


def test_without_test_data_it_says_so(tmp_path):
    a = run(tmp_path, "a", CHANGES, task=NoServerData)
    with pytest.raises(ConfigError, match="no test examples"):
        connectivity(a, a)
