"""Membership inference and gradient inversion: what leaks is found, noise hides it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.task import NoServerData, TinyTask
from truststram.engine import one_torch_thread
from truststram.errors import ConfigError
from truststram.job import Job
from truststram.privacy.inversion import MOST_PSNR, invert, inverted, psnr
from truststram.privacy.membership import attacks, judged, listed, pool_of
from truststram.task import Node
from truststram.tasks.torch_task import Examples, TorchTask, seeded_model

JOB = Job.of({"task.name": "tiny", "train.batch-size": 8, "train.rounds": 20})
PRIVATE = JOB.replace({"privacy.mechanism": "gaussian", "privacy.insecure": True})


class NoisyLabels(TorchTask):
    """Labels are coins: whatever is learnt of them is memory."""

    def model(self, job, seed):
        return seeded_model(
            lambda: nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 2)), seed
        )

    def _rows(self, seed: int, n: int) -> Examples:
        rng = np.random.default_rng(seed)
        return Examples.of(rng.normal(size=(n, 12)), rng.integers(0, 2, n))

    def train_data(self, job, node):
        return self._rows(node.partition, 100)

    def test_data(self, job, node):
        return self._rows(100, 200)


@pytest.fixture(scope="module")
def overfit():
    """Return task, job, pool and a model that knows its members by heart."""
    task = NoisyLabels()
    job = JOB.replace({"train.local-epochs": 40, "train.rounds": 1})
    pool = pool_of(task, job, 2)
    model = task.model(job, 1)
    members = pool.data.take(np.flatnonzero(pool.member))
    with one_torch_thread():
        task.train(model, members, job, 1)
    return task, job, pool, model


def test_an_overfit_model_betrays_its_members(overfit):
    task, job, pool, model = overfit
    threshold, lira = attacks(model, task, job, pool, shadows=6)
    assert threshold.auc > 0.6
    assert lira.auc > threshold.auc
    assert lira.tpr > 0.03
    assert threshold.verdict == "members can be told from others"
    assert "AUC" in listed([lira])[0]


def test_a_model_that_was_never_trained_betrays_nobody(overfit):
    task, job, pool, _ = overfit
    for attack in attacks(task.model(job, 2), task, job, pool, shadows=2):
        assert abs(attack.auc - 0.5) < 3 * attack.spread
        assert "no better than chance" in attack.verdict


def test_members_are_training_rows_and_others_are_not(overfit):
    task, job, pool, _ = overfit
    train = torch.cat([task.train_data(job, Node(str(i), i, 2)).x for i in range(2)])
    rows = {tuple(x.tolist()) for x in train}
    found = [tuple(x.tolist()) in rows for x in pool.data.x]
    assert found == pool.member.tolist()
    assert pool.member.sum() * 2 == len(pool.member)


def test_auc_and_true_positive_rate_are_those_of_the_scores():
    member = np.repeat([True, False], 200)
    perfect = judged("perfect", member.astype(float), member)
    assert (perfect.auc, perfect.tpr) == (1.0, 1.0)
    same = judged("same", np.zeros(400), member)
    assert (same.auc, same.tpr) == (0.5, 0.0)
    score = np.random.default_rng(1).normal(size=400) + member
    mixed = judged("mixed", score, member)
    pairs = score[member][:, None] > score[~member][None]
    assert mixed.auc == pytest.approx(pairs.mean())
    accused = (score[~member] > np.sort(score[~member])[-3]).mean()
    assert accused == 0.01
    assert mixed.tpr == (score[member] > np.sort(score[~member])[-3]).mean()


def test_without_data_on_the_server_there_are_no_others():
    with pytest.raises(ConfigError, match="non-members"):
        pool_of(NoServerData(), JOB, 3)


def test_a_bare_update_is_its_input():
    task = TinyTask()
    found = invert(task, JOB, task.train_data(JOB, Node("0", 0, 3)))
    assert found.plain > 90
    assert found.protected is None
    assert found.verdict == "nothing protects a single update"
    assert found.layer == "the model's first layer"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy.trust": "local"},
        {"privacy.mechanism": "dp-sgd", "privacy.unit": "example"},
    ],
)
def test_noise_hides_the_input(changes):
    task, job = TinyTask(), PRIVATE.replace(changes)
    found = invert(task, job, task.train_data(job, Node("0", 0, 3)), nodes=3)
    assert found.plain > 90
    assert found.protected < found.guess + 3
    assert "no more than a constant guess" in found.verdict


def test_clipping_alone_hides_nothing(monkeypatch):
    silent = "strategies.mechanisms.noise.draw"
    monkeypatch.setattr(silent, lambda r, units, d, s: np.zeros(d, np.int64))
    task, job = TinyTask(), PRIVATE
    found = invert(task, job, task.train_data(job, Node("0", 0, 3)), nodes=3)
    assert found.protected > found.guess + 20
    assert "still gives the input away" in found.verdict


def test_a_model_that_begins_otherwise_has_a_linear_stand_in():
    class Convolution(NoisyLabels):
        def model(self, job, seed):
            layers = nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(20, 2)
            return seeded_model(lambda: nn.Sequential(*layers), seed)

        def train_data(self, job, node):
            data = super().train_data(job, node)
            return Examples(data.x[:, None], data.y)

    task = Convolution()
    found = invert(task, JOB, task.train_data(JOB, Node("0", 0, 2)))
    assert "linear model of the same inputs" in found.layer
    assert found.plain > 90


def test_the_formula_and_its_measure():
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=5), rng.normal(size=3)
    delta = np.r_[np.outer(g, x).ravel(), g, rng.normal(size=7)]
    np.testing.assert_allclose(inverted(delta, (3, 5)), x)
    assert psnr(x, x) == MOST_PSNR
    assert psnr(np.array([0.0, 1.0]), np.array([0.1, 1.1])) == pytest.approx(20.0)
    assert np.isfinite(inverted(np.zeros(18), (3, 5))).all()
