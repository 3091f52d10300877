"""Plans on plain TensorFlow against TensorFlow Federated's own executor, and torch.

Slow: needs TensorFlow Federated's environment, which uv provides (or
``TRUSTSTRAM_TFF_PYTHON``). All jobs are compiled and run natively by one process.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tff_bridge import compiler
from tff_bridge.job import CrossSiloJob
from tff_bridge.subprocess_tree import run_bounded
from tff_bridge.trace import trace

from .models import Mlp

pytestmark = pytest.mark.slow

ROUNDS = 3
# Unequal, and not multiples of the batch.
SILOS = (33, 8, 61, 20)
BASE = {"train.lr": 0.1, "train.local-epochs": 2, "train.batch-size": 16}
SGD = {"tff.algorithm": "fed-sgd", "train.batch-size": 16, "server.lr": 0.5}
DP = {"tff.aggregator": "dp", "tff.clip": 0.3, "tff.clients-per-round": 4}
JOBS = {
    "fed-avg": BASE,
    "uniform": {**BASE, "tff.weighting": "uniform"},
    "momentum": {**BASE, "train.momentum": 0.9, "server.momentum": 0.5},
    "fed-prox": {**BASE, "tff.algorithm": "fed-prox", "tff.proximal": 0.5},
    "fed-sgd": SGD,
    "mime-lite": {**BASE, "tff.algorithm": "mime-lite", "train.momentum": 0.9},
    "adam": {**BASE, "server.optimizer": "adam"},
    "yogi": {**BASE, "server.optimizer": "yogi"},
    "adagrad": {**BASE, "server.optimizer": "adagrad"},
    "robust": {**BASE, "tff.aggregator": "robust"},
    "compression": {**BASE, "tff.aggregator": "compression"},
    "secure": {**BASE, "tff.aggregator": "secure"},
    "dp without noise": {**BASE, **DP},
}
TO_NATIVE, TO_TORCH = 1e-6, 1e-5


def silos():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(20, 4))
    data = []
    for rows in SILOS:
        x = rng.normal(size=(rows, 20)).astype(np.float32)
        y = (x @ truth + rng.normal(size=(rows, 4))).argmax(1).astype(np.int64)
        data.append((x, y))
    return data


def model():
    torch.manual_seed(3)
    return Mlp()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return (plan, model after each round) by job, as TFF made them."""
    root = tmp_path_factory.mktemp("golden")
    traced = trace(model(), Mlp.example[:2])
    given = {"rounds": ROUNDS, "silos": len(SILOS), "weights": len(traced.weights)}
    given |= {f"w{i}": w for i, w in enumerate(traced.weights.values())}
    for i, (x, y) in enumerate(silos()):
        given |= {f"x{i}": x, f"y{i}": y}
    jobs = {name: CrossSiloJob.of(config) for name, config in JOBS.items()}
    folders = []
    for number, job in enumerate(jobs.values()):
        folders.append(root / str(number))
        (folders[-1] / "in").mkdir(parents=True)
        compiler.write_input(job, traced, folders[-1] / "in")
        np.savez(folders[-1] / "in" / "silos.npz", **given)
    script = str(compiler._HERE.parent / "tests" / "tff_bridge" / "native_rounds.py")
    status, output = run_bounded(
        [*compiler.tff_python(), script, *map(str, folders)],
        environment=compiler._environment(),
        time_limit=1200,
    )
    assert status == 0, output[-3000:]
    return {
        name: (
            compiler._assembled(job, traced, f / "out"),
            dict(np.load(f / "native.npz")),
        )
        for (name, job), f in zip(jobs.items(), folders, strict=True)
    }


def run_plan(plan):
    """Yield the model after each round of the plan on plain TensorFlow."""
    from tff_bridge.runtime import PieceFunction, SiloRuntime

    program = plan.programs["train"]
    call = {name: PieceFunction(piece, name) for name, piece in program.pieces.items()}
    silo = SiloRuntime(program)
    state = list(call["init"]())
    for place, weights in zip(program.parameters, plan.weights.values(), strict=True):
        assert not np.any(state[place]), "the graph holds no weights"
        state[place] = weights
    clear = sum(leaf.slot == "accumulate" for leaf in program.sent)
    for _ in range(ROUNDS):
        prepared = call["prepare"](*state)
        total, sealed = list(call["zero"]()), []
        for x, y in silos():
            order = np.tile(np.arange(len(x)), (plan.job["train.local-epochs"], 1))
            sent = silo.work(x, y, order, plan.job["train.batch-size"], prepared)
            total = list(call["accumulate"](*total, *sent[:clear]))
            sealed.append(sent[clear:])
        for leaf, *terms in zip(program.sent[clear:], *sealed, strict=True):
            assert all((t >= 0).all() and (t < leaf.limit).all() for t in terms)
        sums = [
            np.sum(terms, axis=0, dtype=terms[0].dtype)
            for terms in zip(*sealed, strict=True)
        ]
        state = list(call["update"](*state, *call["report"](*total), *sums))
        state = state[: len(program.state)]
        yield [state[place] for place in program.parameters]


@pytest.mark.parametrize("name", JOBS)
def test_a_plan_does_what_tff_does(compiled, name):
    plan, native = compiled[name]
    for number, weights in enumerate(run_plan(plan), start=1):
        for i, array in enumerate(weights):
            expected = native[f"{number}-{i}"]
            np.testing.assert_allclose(array, expected, atol=TO_NATIVE, rtol=0)
    moved = max(
        np.abs(a - b).max() for a, b in zip(weights, plan.weights.values(), strict=True)
    )
    assert moved > 1e-2, "training changed nothing"


def torch_fed_avg(weighting):
    """Federated averaging as a plain loop (McMahan et al., AISTATS 2017)."""
    server = model()
    for _ in range(ROUNDS):
        updates, counts = [], []
        for x, y in silos():
            local = copy.deepcopy(server)
            sgd = torch.optim.SGD(local.parameters(), lr=BASE["train.lr"])
            for _ in range(BASE["train.local-epochs"]):
                for rows in torch.arange(len(x)).split(BASE["train.batch-size"]):
                    sgd.zero_grad()
                    scores = local(torch.tensor(x)[rows])
                    nn.functional.cross_entropy(
                        scores, torch.tensor(y)[rows]
                    ).backward()
                    sgd.step()
            updates.append([p.detach() for p in local.parameters()])
            counts.append(len(x) if weighting == "examples" else 1)
        with torch.no_grad():
            for i, p in enumerate(server.parameters()):
                parts = [n * u[i] for n, u in zip(counts, updates, strict=True)]
                p.copy_(sum(parts) / sum(counts))
    return [p.detach().numpy() for p in server.parameters()]


@pytest.mark.parametrize(
    ("name", "weighting"),
    [("fed-avg", "examples"), ("uniform", "uniform"), ("secure", "examples")],
)
def test_a_plan_does_what_torch_does(compiled, name, weighting):
    plan, _ = compiled[name]
    *_, weights = run_plan(plan)
    for ours, theirs in zip(weights, torch_fed_avg(weighting), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TO_TORCH, rtol=0)
