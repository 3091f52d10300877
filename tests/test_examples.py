"""The examples do what they say."""

from __future__ import annotations

import numpy as np

import truststram
from examples.compression_in_a_flower_app import example as compression_example
from examples.encrypted_sum_in_a_flower_app import main as encrypted_example
from examples.guard_in_a_flower_app import main as guard_example
from examples.own_task import TwoMoons
from examples.staircase_on_tabular_data import main as staircase_example
from examples.staircase_on_tabular_data import noise
from examples.wfagg_in_a_flower_app import main as wfagg_example


def test_own_task_learns(tmp_path):
    job = {"task.name": "two-moons", "train.rounds": 20, "train.lr": 0.3}
    result = truststram.run(job, task=TwoMoons, nodes=4, dir=tmp_path, progress=False)
    assert result.ok
    assert result.metrics["accuracy"] > 0.9


def test_compression_sends_25_times_less_and_arrives():
    times, distance = compression_example()
    assert times > 25
    plain, exact = compression_example("none")
    assert abs(plain - 1) < 0.001
    assert exact < distance < 0.15


def test_the_guard_drops_the_nan_client():
    np.testing.assert_allclose(guard_example(), 3.0)


def test_the_encrypted_sum_is_the_mean():
    np.testing.assert_allclose(encrypted_example(), 0.5, atol=1e-5)


def test_wfagg_keeps_the_accuracy_that_fedavg_loses_to_two_attackers():
    accuracy = wfagg_example()
    clean = accuracy["FedAvg, no attack"]
    assert clean > 0.9
    assert accuracy["WFAgg"] >= clean - 0.02
    assert accuracy["FedAvg"] <= clean - 0.2


def test_staircase_beats_gaussian_by_three_points_where_silos_release_once():
    accuracy = staircase_example()
    assert accuracy["no noise"] > 0.92
    assert accuracy["auto"] >= accuracy["gaussian"] + 0.03
    assert accuracy["auto"] >= accuracy["laplace"] + 0.02
    chosen, least = noise("auto")
    assert chosen == "staircase-ball"
    assert least < min(noise(other)[1] for other in ("laplace", "gaussian"))
