import math

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant
from torch import nn

from tests.truststram.tasks.private_networks import (
    clipped,
    cnn,
    frozen,
    loss,
    made,
    oracle,
    private,
)
from truststram._locate import app_module
from truststram.engine import run_local
from truststram.errors import ConfigError, DataError
from truststram.job import Job
from truststram.result import RunResult
from truststram.task import Node
from truststram.tasks.digits import Digits
from truststram.tasks.dp_plan import (
    MARGIN,
    node_ledger,
    planned_release,
    steps_per_round,
    sum_lattice,
)
from truststram.tasks.dp_sgd import check_task, clip_factors, train_private
from truststram.tasks.example_gradients import Gradients, trained
from truststram.tasks.private_models import example_gradients
from truststram.tasks.torch_task import Examples, TorchTask

Source = app_module("strategies.mechanisms.csprng").Source


# One step: clip, noise, divisor


class Drawn(Source):
    """A source that draws every example, or none."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def uniforms(self, n):
        return np.full(n, self.value)


def one_step(source=None, rows=40, batch=40, seed=7, clip=0.5, **keys):
    """Return data, job, and minus the change of the weights times the divisor."""
    model, x, y = made(lambda: nn.Linear(2000, 3), (2000,), rows)
    job = private(
        train__rounds=1,
        train__local_epochs=1,
        train__batch_size=batch,
        train__lr=1.0,
        privacy__clip=clip,
        **keys,
    )
    before = torch.cat([p.detach().clone().reshape(-1) for p in model.parameters()])
    right = oracle(model, x, y)
    if steps_per_round(job, rows) > 1:
        job = job.replace({"train.local-epochs": 1})
    assert train_private(model, Examples(x, y), job, seed, source) == {}
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    z = planned_release(job, rows, len(before)).scale
    return right, (before - after) * min(batch, rows), z


def plausible(noise, std):
    """Whether the variance of d values is that of Gaussian noise, to 5 sigma."""
    d = len(noise)
    return abs(float(noise.square().mean()) / std**2 - 1) < 5 * math.sqrt(2 / d)


@pytest.mark.parametrize(
    ("wrong", "accepted"), [(1, True), (2 / 3, False), (1.5, False)]
)
def test_noise_has_the_planned_scale(wrong, accepted):
    right, moved, z = one_step()
    clip = 0.5 * (1 - MARGIN)
    noise = moved - clipped(right, clip)
    assert plausible(noise, wrong * z * 0.5) is accepted
    assert abs(float(noise.mean())) < 5 * z * 0.5 / math.sqrt(len(noise))


@pytest.mark.parametrize(
    ("wrong", "accepted"), [(1, True), (2 / 3, False), (1.5, False)]
)
def test_every_example_is_clipped(wrong, accepted):
    right, moved, z = one_step()
    assert right.norm(dim=1).min() > 1  # nothing is short already
    expected = clipped(right, wrong * 0.5 * (1 - MARGIN))
    along = expected / expected.norm()
    error = abs(float((moved - expected) @ along))
    assert (error < 5 * z * 0.5) is accepted


def test_short_gradients_are_left_alone():
    right, moved, z = one_step(clip=1e3, privacy__epsilon=20.0)
    assert right.norm(dim=1).max() < 1e3 * (1 - MARGIN)
    assert plausible(moved - right.sum(0), z * 1e3)


def test_an_empty_batch_is_a_step_of_noise():
    _, moved, z = one_step(Drawn(1.0), batch=39)
    # One epoch of 40 examples in batches of 39 has two steps, each of noise alone.
    assert plausible(moved, math.sqrt(2) * z * 0.5)


def test_the_divisor_is_the_expected_size_of_a_batch():
    # Two steps with all 40 examples, at almost the same weights.
    right, moved, z = one_step(Drawn(1e-9), batch=20, clip=1e-6)
    expected = 2 * clipped(right, 1e-6 * (1 - MARGIN))
    along = expected / expected.norm()
    room = 5 * math.sqrt(2) * z * 1e-6
    assert abs(float((moved - expected) @ along)) < room
    assert abs(float((moved - expected / 2) @ along)) > room


def test_batches_are_drawn_example_by_example():
    sizes = []

    class Counted(Source):
        def uniforms(self, n):
            found = super().uniforms(n)
            if n == 40:
                sizes.append(int((found <= 0.25).sum()))
            return found

    model, x, y = made(lambda: nn.Linear(4, 3), (4,), 40)
    job = private(train__batch_size=10, train__local_epochs=50)
    train_private(model, Examples(x, y), job, 1, Counted())
    assert len(sizes) == 200
    # Binomial(40, 1/4): mean 10, variance 7.5.
    assert abs(np.mean(sizes) - 10) < 5 * math.sqrt(7.5 / 200)
    assert 4 < np.var(sizes) < 12


def test_examples_with_gradients_that_are_not_finite_count_as_zero():
    model, x, y = made(cnn, (1, 8, 8))
    whole, rest = x.clone(), [0, 2, 3, 5, 6]
    whole[1], whole[4] = math.nan, math.inf
    with example_gradients(model, loss, x) as gradients:
        found = gradients(whole, y)
        damaged = found.total(clip_factors(found, 1.0), trained(model))
        found = gradients(x[rest], y[rest])
        good = found.total(clip_factors(found, 1.0), trained(model))
    torch.testing.assert_close(damaged, good)


def test_tiny_times_huge_is_clipped_too():
    layer = nn.Linear(1, 1, bias=False)
    a, b = torch.full((1, 1), 1e18), torch.full((1, 1), 1e-23)
    found = Gradients(1, outer=[(layer, a, b)])
    assert float(found.norms()) == pytest.approx(1e-5)
    total = found.total(clip_factors(found, 1e-8), trained(layer))
    assert float(total) == pytest.approx(1e-8)


def test_large_batches_are_computed_in_parts(monkeypatch):
    monkeypatch.setattr("truststram.tasks.dp_sgd._ROWS", 3)
    moved = one_step()[1]
    monkeypatch.undo()
    whole = one_step()[1]
    torch.testing.assert_close(moved, whole, atol=2e-3, rtol=1e-3)


def test_only_trained_parameters_move():
    model = nn.Sequential(nn.Linear(4, 4), frozen(nn.Linear(4, 4)), nn.Linear(4, 3))
    model.register_buffer("constant", torch.ones(3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _, x, y = made(lambda: nn.Identity(), (4,))
    train_private(model, Examples(x, y), private(), 1)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"0.weight", "0.bias", "2.weight", "2.bias"}


# Randomness


def weights(seed, factory=lambda: nn.Linear(4, 3), **keys):
    model, x, y = made(factory, (4,))
    train_private(model, Examples(x, y), private(**keys), seed)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("layers", [(), (nn.Dropout(0.5),)])
def test_noise_repeats_only_where_it_is_asked_to(layers):
    def factory():
        return nn.Sequential(*layers, nn.Linear(4, 3))

    before = torch.get_rng_state()
    assert torch.equal(weights(1, factory), weights(1, factory))
    assert not torch.equal(weights(1, factory), weights(2, factory))
    real = {"privacy__insecure": False}
    assert not torch.equal(weights(1, factory, **real), weights(1, factory, **real))
    assert torch.equal(torch.get_rng_state(), before)


# Account


CASES = [(8.0, 460, 16, 20, 1), (1.0, 1000, 50, 5, 2)]


@pytest.mark.parametrize(("epsilon", "n", "batch", "rounds", "epochs"), CASES)
def test_the_budget_is_what_the_accountant_of_opacus_says(
    epsilon, n, batch, rounds, epochs
):
    job = private(
        privacy__epsilon=epsilon,
        train__batch_size=batch,
        train__rounds=rounds,
        train__local_epochs=epochs,
    )
    z = planned_release(job, n, 10_000).scale
    theirs = PRVAccountant()
    steps = rounds * epochs * math.ceil(n / batch)
    theirs.history = [(z, batch / n, steps)]
    found = theirs.get_epsilon(1e-5, eps_error=0.002 * epsilon)
    assert found == pytest.approx(epsilon, rel=0.01)


@pytest.mark.parametrize("n", [5, 17])
def test_the_ledger_of_a_node_never_exceeds_the_budget(n):
    job = private(train__rounds=6)
    spent = [node_ledger(job, n, 100, rounds).spent() for rounds in range(7)]
    assert spent[0] == 0
    assert spent == sorted(spent)
    assert 0.99 * 8 < spent[-1] <= 8
    release = planned_release(job, n, 100)
    assert release.sampling.rate == min(1, 16 / n)
    assert release.sampling.kind == ("none" if n <= 16 else "poisson")
    assert node_ledger(job, n, 100).would_exceed(release, steps_per_round(job, n))
    words = node_ledger(job, n, 100).describe()
    assert "Unit: example. Relation: add-remove" in words
    assert "local" in words


def test_random_bits_are_paid_for():
    few = planned_release(private(privacy__epsilon=0.1), 1000, 100)
    many = planned_release(private(privacy__epsilon=0.1), 1000, 300_000)
    assert many.scale > 1.005 * few.scale


@pytest.mark.parametrize("d", [1, 100, 2730, 996_206])
@pytest.mark.parametrize("clip", [1.0, 1.99, 0.3])
def test_rounding_a_sum_stays_within_its_margin(d, clip):
    assert math.sqrt(d) * sum_lattice(clip, d).step <= clip * MARGIN / 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"privacy__clip": 1e-12}, "privacy.clip = 1e-12"),
        ({"privacy__relation": "replace"}, "Poisson sampling with replace"),
        ({"privacy__epsilon": 1e-4}, "too small"),
    ],
)
def test_what_cannot_be_honoured_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        planned_release(private(**keys), 1000, 10_000_000)


# As part of a task


def test_a_torch_task_trains_privately_and_tells_no_loss():
    task, job = Digits(), private(train__rounds=1)
    data = task.train_data(job, Node(partition=0, partitions=4))
    model = task.model(job, 1)
    assert task.train(model, data, job, 1) == {}
    plain = task.train(task.model(job, 1), data, Job(), 1)
    assert set(plain) == {"train-loss"}


def test_no_examples_are_an_error():
    none = Examples(torch.zeros(0, 4), torch.zeros(0).long())
    with pytest.raises(DataError, match="no training examples"):
        train_private(nn.Linear(4, 3), none, private(), 1)


def test_weights_that_diverge_are_an_error():
    model, x, y = made(lambda: nn.Linear(4, 3), (4,))
    with pytest.raises(ConfigError, match=r"train\.lr"):
        train_private(
            model, Examples(x, y), private(train__lr=1e38, privacy__clip=1e8), 1
        )


def test_a_task_that_trains_in_its_own_way_is_refused():
    class Own(Digits):
        def train(self, model, data, job, seed):
            return {}

    check_task(Digits())
    for task in (Own(), object()):
        with pytest.raises(ConfigError, match=r"privacy.unit = example"):
            check_task(task)
    assert TorchTask.train is Digits.train


def test_a_federation_learns_under_a_budget_of_8(tmp_path):
    job = private(
        train__rounds=8,
        train__local_epochs=1,
        train__batch_size=64,
        train__lr=0.5,
        data__partitioner="iid",
        run__id="run",
    ).replace({"run.dir": str(tmp_path)})
    run_local(job, nodes=3, threads=1)
    result = RunResult.read(tmp_path / "run")
    assert result.status == "completed"
    assert result.rounds[-1].metrics["accuracy"] > 0.6
    # The training loss is a release that nobody paid for.
    assert not any("loss" in name for r in result.rounds for name in r.train_metrics)
