"""Who is asked: nodes drawn by themselves, or a cohort of a fixed size."""

from __future__ import annotations

import numpy as np
import pytest

from tests.strategies.mechanisms.central import Federation
from tests.support.federation import adding_app, grid_of
from truststram.errors import RunError


def test_each_node_is_drawn_by_itself():
    """Of 400 nodes at q = 0.3: 120 +- 5 deviations, another set every round."""
    federation = Federation(nodes=400, round__fraction=0.3, train__rounds=3)
    cohorts = []
    for number in (1, 2, 3):
        cohorts.append({m.metadata.dst_node_id for m in federation.ask(number)})
        federation.release([], number)
    assert all(abs(len(c) - 120) < 46 for c in cohorts)
    assert cohorts[0] != cohorts[1] != cohorts[2]
    assert federation.layer.plan.cohort == pytest.approx(120)


def test_an_empty_cohort_releases_noise_and_is_charged(monkeypatch):
    federation = Federation(nodes=3, round__fraction=0.5)
    monkeypatch.setattr("strategies.mechanisms.layer.drawn", lambda *a: [])
    assert federation.ask() == []
    change = federation.release([])
    assert np.abs(change).max() > 0
    assert len(federation.of("privacy-spent")) == 1


FIXED = {"privacy__sampling": "fixed", "round__fraction": 0.3, "train__rounds": 3}


class TestFixedCohorts:
    def test_exactly_m_are_asked_and_the_sum_is_divided_by_m(self, silent):
        federation = Federation(nodes=10, **FIXED)
        cohorts = []
        for number in (1, 2, 3):
            asked = federation.ask(number)
            assert len(asked) == 3
            cohorts.append({m.metadata.dst_node_id for m in asked})
            np.testing.assert_allclose(
                federation.release([0.1] * 3, number), 0.1, rtol=1e-4
            )
        assert len(set(map(frozenset, cohorts))) > 1
        [plan] = federation.of("privacy-plan")
        assert plan["relation"] == "replace"
        assert "exactly 3 of 10" in plan["sampling"]

    def test_the_noise_is_that_of_two_clips(self):
        federation = Federation(nodes=10, shapes={"w": (20_000,)}, **FIXED)
        federation.ask()
        release = federation.layer.plan.release
        assert release.sensitivity == 2.0
        assert float(federation.release([]).std()) * 3 == pytest.approx(
            release.scale, rel=0.03
        )

    @pytest.mark.parametrize("nodes", [9, 11])
    def test_another_number_of_nodes_stops_the_run(self, nodes):
        federation = Federation(nodes=10, **FIXED)
        federation.ask(1)
        federation.release([], 1)
        before = federation.layer.ledger.state()
        federation.grid = grid_of(adding_app(lambda p, r: 1.0), nodes)
        with pytest.raises(RunError, match="number of nodes that does not change"):
            federation.ask(2)
        assert federation.layer.ledger.state() == before

    def test_it_is_remembered_from_before_a_resume(self):
        federation = Federation(nodes=10, **FIXED)
        federation.ask(1)
        federation.release([], 1)
        again = Federation(nodes=12, **FIXED)
        again.layer.load_state(federation.layer.state())
        with pytest.raises(RunError, match=r"12 nodes are connected .* with 10"):
            again.ask(2)
