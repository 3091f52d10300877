from __future__ import annotations

import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import _robust_data as data
from benchmarks._results import ROOT
from benchmarks._robust_grid import ATTACKERS, RULES, Federation, Outcome, rule_of
from benchmarks._robust_runs import simulate
from benchmarks._robust_table import Table
from benchmarks._robust_training import CNN, MLP
from benchmarks.robust_accuracy import worst_cases
from benchmarks.robust_speed import rule_trial
from tests.benchmarks.images import some_images


@pytest.mark.parametrize(("network", "size"), [(MLP, 6634), (CNN, 3322)])
def test_training_is_sgd_as_autograd_computes_it(network, size):
    rng = np.random.default_rng(0)
    start = torch.tensor(np.stack([network.initial(rng) for _ in range(3)]))
    images = torch.tensor(rng.random((2, 8, 196), np.float32))
    labels = torch.tensor(rng.integers(0, 10, (2, 8)))
    x = network.cut(images.flatten(0, 1)).reshape(2, 8, network.patches, -1)
    target = torch.nn.functional.one_hot(labels, 10).float()[:, None]
    found = network.train(start, x, target, 0.2)
    assert start.shape == (3, size)
    for run in range(3):
        flat = start[run].clone().requires_grad_()
        for batch, label in zip(x, labels, strict=True):
            w1, b1, w2, b2 = flat.split(network.sizes)
            hidden = torch.relu(batch @ w1.reshape(-1, network.features) + b1)
            answers = hidden.reshape(8, -1) @ w2.reshape(-1, 10) + b2
            loss = torch.nn.functional.cross_entropy(answers, label)
            (gradient,) = torch.autograd.grad(loss, flat)
            flat = (flat - 0.2 * gradient).detach().requires_grad_()
        torch.testing.assert_close(found[run], (flat - start[run]).detach())


def test_patches_are_those_of_a_convolution():
    images = torch.rand(3, 196)
    weights = torch.rand(25, 12)
    expected = torch.nn.functional.conv2d(
        images.reshape(3, 1, 14, 14), weights.T.reshape(12, 1, 5, 5), stride=2
    )
    found = (CNN.cut(images) @ weights).transpose(1, 2).reshape(3, 12, 5, 5)
    torch.testing.assert_close(found, expected)


@pytest.fixture
def images(monkeypatch):
    """Of training and of test."""
    parts = some_images(55_000, 500)
    monkeypatch.setattr(data, "_images", lambda: parts)
    data.split.cache_clear()
    yield parts
    data.split.cache_clear()


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_no_example_is_dealt_twice(images, alpha):
    found = data.split(alpha, 3, False)
    rows = found.x.reshape(-1, 196)
    assert found.x.shape == (20, 300, 196)
    assert len(torch.unique(rows, dim=0)) == 6000
    counts = torch.stack([torch.bincount(y, minlength=10) for y in found.y])
    # Of 300 examples, how many are of a client's most frequent class.
    most = float(counts.max(1).values.float().mean())
    assert most < 60 if alpha is None else most > 90


def test_runs_in_one_batch_are_what_they_are_alone(images, one_thread):
    federation = Federation(0.5, 4, 0, rounds=5)
    wanted = [("mean", "none"), ("mean", "IPM100"), ("wfagg", "LF")]
    wanted += [("wfagg", "noise10"), ("wfagg", "none")]
    together = simulate(federation, wanted)
    assert [(o.rule, o.attack) for o in together] == wanted
    for number in (1, 2):
        (alone,) = simulate(federation, [wanted[number]])
        assert alone.accuracy == pytest.approx(together[number].accuracy, abs=0.01)
    assert together[0].accuracy > 0.5 > 0.2 > together[1].accuracy
    assert together[3].true == 1
    assert np.isnan(together[4].true)


def test_every_rule_runs_under_every_attack(images, one_thread):
    wanted = [(rule, attack) for rule in RULES for attack in ATTACKERS]
    found = simulate(Federation(None, 4, 0, rounds=1), wanted)
    assert len(found) == len(wanted)


def test_rules_that_refuse_are_left_out(images, one_thread):
    assert rule_of("wfagg", 10).refusal(20)
    federation = Federation(None, 10, 0, rounds=1)
    found = simulate(federation, [("wfagg", "none"), ("mean", "none")])
    assert [o.rule for o in found] == ["mean"]


def table(accuracies):
    """One cell, two seeds; the accuracies by rule and attack."""
    return Table(
        [
            Outcome(Federation(0.3, 4, seed), rule, attack, value + seed / 100, 0, 1)
            for rule, attacks in accuracies.items()
            for attack, value in attacks.items()
            for seed in (-1, 1)
        ]
    )


ACCURACIES = {
    "mean": {"none": 0.7, "SF1": 0.1},
    "krum": {"none": 0.6, "SF1": 0.55},
    "wfagg ema=0": {"none": 0.69, "SF1": 0.64},
    "wfagg": {"none": 0.69, "SF1": 0.6, "noise10": 0.2},
}


def test_the_worst_case_is_the_least_mean_over_seeds(tmp_path):
    found = table(ACCURACIES)
    (cell,) = found.cells
    assert found.worst(cell, "wfagg") == (pytest.approx(60), "SF1")
    assert found.best_peer(cell) == (pytest.approx(55), "krum", "SF1")
    assert np.isnan(found.worst(cell, "bulyan")[0])
    text = found.markdown()
    assert "| krum | 60.0 | 55.0 |" in text
    assert "| wfagg ema=0 | 69.0 | **64.0** |" in text
    found.picture(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize(("worst", "holds"), [(0.546, True), (0.544, False)])
def test_the_goal_allows_half_a_point(worst, holds):
    accuracies = {**ACCURACIES, "wfagg": {"none": 0.69, "SF1": worst}}
    assert next(worst_cases(table(accuracies))).holds is holds


def test_without_data_the_ways_to_get_it_are_named(tmp_path):
    command = [sys.executable, "-m", "benchmarks.robust_accuracy", "--quick"]
    done = subprocess.run(
        [*command, "--data", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    for words in (str(tmp_path), "--data", data.VARIABLE, "Debian"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_folder_is_read_and_pooled(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 28, 28), np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4I", 0x803, 12, 28, 28) + pixels.tobytes())
        with gzip.open(tmp_path / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">2I", 0x801, 12) + labels.tobytes())
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    (x, y), _ = data._images.__wrapped__()
    assert y.tolist() == labels.tolist()
    assert float(x[3, 0]) == pytest.approx(pixels[3, :2, :2].mean() / 255, rel=1e-5)


@pytest.mark.parametrize("name", ["wfagg", "wfagg-paper"])
def test_the_timed_rule_has_a_history_of_every_client(name):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((20, 500)).astype(np.float32)
    decision = rule_trial(name, matrix, np.ones(500, np.float32))()()
    statistic = {"wfagg": "change-distance", "wfagg-paper": "change"}[name]
    assert all(row[statistic] is not None for row in decision.evidence)
