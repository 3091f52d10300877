"""The benchmarks of privacy measure what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import _privacy_data as data
from benchmarks import _privacy_oneshot as oneshot
from benchmarks import _privacy_runs as runs
from benchmarks._privacy_attack import area
from benchmarks._privacy_oneshot import Case, Trial, errors, released_by
from benchmarks._privacy_posterior import likeliest
from benchmarks._privacy_runs import MOST_RATE, Outcome, Server, Setting, simulate
from benchmarks._privacy_silos import accuracies_at, splits
from benchmarks._privacy_table import Table
from benchmarks._privacy_training import LINEAR, MLP
from benchmarks.privacy_accuracy import accuracies, attacks, mechanisms, tasks
from benchmarks.staircase import noise_of
from strategies.accounting.calibrate import noise_std
from tests.benchmarks.images import some_images

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images(monkeypatch):
    """Of training and of test."""
    parts = some_images(60_000, 500)
    monkeypatch.setattr(data, "_images", lambda: parts)
    data.load.cache_clear()
    yield parts
    data.load.cache_clear()


@pytest.mark.parametrize(("network", "size"), [(LINEAR, 1970), (MLP, 6634)])
def test_training_is_sgd_as_autograd_computes_it(network, size):
    rng = np.random.default_rng(0)
    start = torch.tensor(network.initial(rng))
    assert start.shape == (size,)
    x = torch.tensor(rng.random((5, 3, 8, 196), np.float32))
    y = torch.tensor(rng.integers(0, 10, (5, 3, 8)))
    found = network.train(start, x, y, 0.2)
    for client in range(3):
        flat = start.clone().requires_grad_()
        for images, labels in zip(x[:, client], y[:, client], strict=True):
            values, rest = images, flat
            for number, (inputs, outputs) in enumerate(network.shapes):
                weights, biases, rest = rest.split(
                    [inputs * outputs, outputs, len(rest) - (inputs + 1) * outputs]
                )
                values = torch.relu(values) if number else values
                values = values @ weights.reshape(inputs, outputs) + biases
            loss = torch.nn.functional.cross_entropy(values, labels)
            (gradient,) = torch.autograd.grad(loss, flat)
            flat = (flat - 0.2 * gradient).detach().requires_grad_()
        torch.testing.assert_close(found[client], (flat - start).detach())
    scores = network.scores(start.numpy(), x[0, 0])
    assert scores.shape == (8, 10)


def test_clients_have_unequal_sizes_and_classes():
    labels = np.arange(50_000) % 10
    found = data.deal(labels, 500, np.random.default_rng(0))
    assert found.sizes.min() >= 30
    assert found.sizes.max() <= 120
    assert found.sizes.mean() == pytest.approx(75, abs=4)
    held = [row[:size] for row, size in zip(found.rows, found.sizes, strict=True)]
    assert len(found.held) == found.sizes.sum()  # nobody shares
    most = [np.bincount(labels[rows]).max() / len(rows) for rows in held]
    assert np.mean(most) > 0.3  # of equal parts it would be about 0.19
    shared = data.deal(labels[:1000], 500, np.random.default_rng(0))
    assert len(shared.held) == 1000


def test_batches_are_a_clients_own_examples_each_as_often():
    labels = np.arange(50_000) % 10
    clients = data.deal(labels, 20, np.random.default_rng(0))
    cohort = np.array([3, 7])
    found = clients.batches(cohort, 100, np.random.default_rng(1))
    assert found.shape == (2, 100)
    for rows, client in zip(found, cohort, strict=True):
        size = clients.sizes[client]
        own = set(clients.rows[client, :size].tolist())
        values, counts = np.unique(rows, return_counts=True)
        assert set(values.tolist()) <= own
        assert counts.max() - counts.min() <= 1
        assert len(values) == min(size, 100)


def test_the_released_mean_is_clipped_noised_and_charged():
    setting = Setting(500, 8.0, rounds=3)
    server = Server(setting, 1)
    update = np.zeros((1, LINEAR.size), np.float32)
    update[0, 0] = 1e6
    released = server.released(update) * setting.cohort
    assert server.noise == pytest.approx(noise_std(runs.planned(setting).release))
    assert released[1:].std() == pytest.approx(server.noise * runs.CLIP, rel=0.1)
    assert abs(released[0]) < runs.CLIP + 6 * released[1:].std()
    for _ in range(2):
        server.released(np.zeros((0, LINEAR.size), np.float32))
    assert 7.9 < server.spent() <= 8
    with pytest.raises(ValueError, match="exceed"):
        server.released(update)
    sizes = [len(server.drawn()) for _ in range(200)]
    assert np.mean(sizes) == pytest.approx(50, abs=3)
    assert len(set(sizes)) > 5


def test_without_privacy_only_the_clip_remains():
    server = Server(Setting(500, math.inf), 1)
    update = np.zeros((1, LINEAR.size), np.float32)
    update[0, 0] = 1e6
    assert server.released(update)[0] == pytest.approx(runs.CLIP / 50, rel=1e-5)
    assert math.isinf(server.spent())


def test_the_rate_is_what_a_run_without_settings_has():
    server = Server(Setting(500, 8.0), 1)
    assert server.rate == pytest.approx(0.012 * 50 / server.noise)
    assert Server(Setting(500, math.inf), 1).rate == MOST_RATE


def test_a_run_learns_can_be_repeated_and_stays_within_its_budget(images):
    setting = Setting(500, 8.0, validation=True, rounds=20)
    found = simulate(setting, 0)
    assert found == simulate(setting, 0)
    assert found.accuracy > 0.5
    assert found.spent <= 8
    assert 0.4 < found.examples < 0.6
    assert 0.3 < found.members < 0.7


def test_the_area_is_one_half_for_what_is_alike():
    assert area(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1
    assert area(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 0
    assert area(np.ones(3), np.ones(5)) == pytest.approx(0.5)


def outcome(clients, epsilon, accuracy, seed=1, mechanism="gaussian"):
    setting = Setting(clients, epsilon, mechanism)
    rest = {"last": 0.7, "examples": 0.5, "members": 0.52}
    return Outcome(setting, seed, 1.0, 0.6, epsilon, accuracy=accuracy, **rest)


@pytest.mark.parametrize(("value", "holds"), [(0.796, True), (0.794, False)])
def test_lines_table_and_picture(value, holds, tmp_path):
    outcomes = [outcome(500, 8.0, value + s / 1000, s + 2) for s in (-1, 0, 1)]
    outcomes += [outcome(500, math.inf, 0.82)]
    outcomes += [outcome(500, 8.0, 0.4, mechanism="laplace")]
    noise = {Setting(500, 8.0): {"gaussian": 1.0, "staircase-ball": 30.0}}
    table = Table(outcomes, noise)
    at8, plain = accuracies(table, 500)
    assert at8.holds is holds
    assert at8.seeds == [1, 2, 3]
    assert plain.ours == 82
    assert len(list(attacks(table, 500))) == 2
    predicted, other = mechanisms(table, 500)
    assert predicted.ratio == 30
    assert "staircase-ball x 30" in predicted.note
    assert (other.ours, other.peer) == pytest.approx((40, 100 * value))
    text = table.markdown()
    assert f"| 8 | **{100 * value:.1f}** | {100 * value - 0.1:.1f} |" in text
    assert "| laplace | 8 |" in text
    table.picture(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_every_goal_is_trained_on_seeds_that_development_does_not_have():
    wanted = {(s.clients, s.epsilon): seeds for s, seeds in tasks()}
    for cell in ((500, 8.0), (2000, 8.0), (2000, 1.0)):
        assert 0 not in wanted[cell]
    assert not any(setting.validation for setting, _ in tasks())


@pytest.mark.parametrize(("name", "points"), [("laplace", 3.95), ("gaussian", 13.4)])
def test_the_error_of_noisy_evaluations_is_the_noise_over_the_root(name, points):
    truth = accuracies_at(20, 1)
    assert truth.shape == (20,)
    found = errors(truth, name, 400, seed=1)
    assert 100 * np.sqrt(np.mean(found**2)) == pytest.approx(points, rel=0.12)
    assert abs(found.mean()) < 4 * points / 100 / 20


def test_staircase_evaluates_better_than_laplace():
    truth = accuracies_at(20, 1)
    found = [
        float(np.sqrt(np.mean(errors(truth, name, 200, seed=1) ** 2)))
        for name in ("staircase", "laplace")
    ]
    assert found[0] < 0.5 * found[1]


@pytest.mark.parametrize("mechanism", oneshot.MECHANISMS)
def test_what_silos_release_is_their_weights_and_the_noise_of_the_account(mechanism):
    (split,) = splits(10, 5, 1, seed=1)
    np.testing.assert_allclose(np.linalg.norm(split.weights, axis=1), 1)
    release = released_by(mechanism, 11)
    source = oneshot.source_of(1, mechanism)
    made = oneshot._released(Case(10, 5), split.weights, release, source, 400)
    off = np.array(made) - split.weights
    wide = 11**0.5 if release.norm == "l1" else 1.0
    assert off.std() == pytest.approx(noise_std(release, wide), rel=0.05)
    assert abs(off.mean()) < 0.05
    (trusted,) = oneshot._released(
        Case(10, 5, trusted=True), split.weights, release, source, 1
    )
    assert trusted.shape == (1, 11)


def test_the_posterior_of_gaussian_noise_is_the_average():
    rng = np.random.default_rng(0)
    noisy = rng.normal(loc=(3.0, 0, 0), size=(5, 3))
    found = likeliest(noisy, released_by("gaussian", 3))
    mean = noisy.mean(axis=0)
    cosine = found @ mean / np.linalg.norm(found) / np.linalg.norm(mean)
    assert cosine > 0.999


@pytest.mark.parametrize("mechanism", oneshot.MECHANISMS)
def test_the_posterior_is_not_worse_than_the_average(mechanism):
    truth = np.tile(np.eye(6)[0], (5, 1))
    release, source = released_by(mechanism, 6), oneshot.source_of(2, mechanism)
    made = oneshot._released(Case(5, 5), truth, release, source, 60)

    def cosine(vector):
        return vector[0] / np.linalg.norm(vector)

    read = np.mean([cosine(likeliest(vectors, release)) for vectors in made])
    averaged = np.mean([cosine(vectors.sum(axis=0)) for vectors in made])
    assert read > averaged - 0.01
    if mechanism == "staircase-ball":
        assert read > averaged + 0.02


def test_a_trial_compares_all_mechanisms():
    trial = Trial(Case(10, 5), 4, 2, seed=1, posterior=True)
    assert set(trial.averaged) == set(trial.posterior) == set(oneshot.MECHANISMS)
    for values in trial.posterior.values():
        assert values.shape == (4,)
        assert 0 <= values.min() <= values.max() <= 100


@pytest.mark.parametrize(
    ("dimension", "ours", "peer"),
    [(2, 0.109, 0.2165), (11, 0.409, 0.433), (100, 1.256, 0.6)],
)
def test_the_noise_that_is_printed(dimension, ours, peer):
    line = noise_of(dimension, 8.0)
    assert line.ours == pytest.approx(ours, rel=0.01)
    assert line.peer == pytest.approx(peer, rel=0.01)
