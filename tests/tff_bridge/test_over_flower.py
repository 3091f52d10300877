"""Every algorithm over Flower does what its pieces do when TFF adds silos up.

Slow: compiles each job (TFF's environment comes from uv, or ``TRUSTSTRAM_TFF_PYTHON``).
That the pieces do what TFF's own executor does is in ``test_golden.py``.
"""

from __future__ import annotations

import numpy as np
import pytest

from server_app.checkpoint import load_model
from tests.support.runs import run
from tff_bridge import compiler
from tff_bridge.job import CrossSiloJob
from tff_bridge.runtime import PieceFunction, SiloRuntime
from tff_bridge.silo_data import order_of
from truststram.job import Job
from truststram.rng import derive_seed
from truststram.task import Node
from truststram.tasks import register_task
from truststram.tasks.breast_cancer import BreastCancer

pytestmark = pytest.mark.slow

ROUNDS, NODES = 3, 4
JOBS = {
    "fed-avg": {},
    "uniform": {"tff.weighting": "uniform"},
    "momentum": {"train.momentum": 0.9, "server.momentum": 0.5},
    "fed-prox": {"tff.algorithm": "fed-prox", "tff.proximal": 0.5},
    "fed-sgd": {"tff.algorithm": "fed-sgd", "server.lr": 0.5},
    "adam": {"server.optimizer": "adam"},
    "yogi": {"server.optimizer": "yogi"},
    "adagrad": {"server.optimizer": "adagrad"},
    "robust": {"tff.aggregator": "robust"},
}


def by_pieces(plan, settings: Job) -> list[np.ndarray]:
    """Return the model after the rounds, with silos added up by ``accumulate``."""
    program, spec = plan.programs["train"], plan.job
    call = {name: PieceFunction(piece, name) for name, piece in program.pieces.items()}
    silo, task = SiloRuntime(program), BreastCancer()
    state = call["init"]()
    for place, weights in zip(program.parameters, plan.weights.values(), strict=True):
        state[place] = weights
    for number in range(1, ROUNDS + 1):
        prepared, total = call["prepare"](*state), call["zero"]()
        for node in range(NODES):
            data = task.train_data(settings, Node(partition=node, partitions=NODES))
            seed = derive_seed(settings.run.seed, "train", str(node), number)
            order = order_of(seed, len(data), spec["train.local-epochs"])
            x, y = data.x.numpy(), data.y.numpy()
            sent = silo.work(x, y, order, spec["train.batch-size"], prepared)
            total = call["accumulate"](*total, *sent)
        state = call["update"](*state, *call["report"](*total))[: len(program.state)]
    return [state[place] for place in program.parameters]


@pytest.mark.parametrize("name", JOBS)
def test_a_plan_over_flower_does_what_its_pieces_do(tmp_path, name):
    register_task("breast-cancer", BreastCancer)
    job = CrossSiloJob.of({"task.name": "breast-cancer", **JOBS[name]})
    plan = compiler.compile_job(job)
    plan.write(tmp_path / "job.tffplan")
    keys = {"task.name": "breast-cancer", "tff.plan": str(tmp_path / "job.tffplan")}
    compiled = {k: plan.job[k] for k in ("train.local-epochs", "train.batch-size")}
    more = {
        "train.lr": plan.job["train.lr"],
        "train.momentum": plan.job["train.momentum"],
    }
    changes = {**keys, **compiled, **more, "train.rounds": ROUNDS}
    result = run(tmp_path, "run", changes, nodes=NODES)
    assert result.ok
    expected = by_pieces(plan, Job.of({"task.name": "breast-cancer"}))
    model = load_model(tmp_path / "run" / "model.safetensors")
    for (name, first), weights in zip(plan.weights.items(), expected, strict=True):
        found = model[name].numpy()  # a saved model is sorted by name
        np.testing.assert_allclose(found, weights, atol=1e-6, rtol=0)
        assert np.abs(weights - first).max() > 1e-3, "training changed nothing"
    assert all(r.train_metrics["train-examples"] > 0 for r in result.rounds)
