"""Every algorithm over Flower does what its pieces do when TFF adds silos up.

Slow: compiles each job (TFF's environment comes from uv, or ``TRUSTSTRAM_TFF_PYTHON``).
That the pieces do what TFF's own executor does is in ``test_golden.py``.
"""

from __future__ import annotations

import numpy as np
import pytest

from server_app.checkpoint import load_model
from tests.support.runs import run
from tests.tff_bridge.by_pieces import by_pieces
from tff_bridge import compiler
from tff_bridge.job import CrossSiloJob
from truststram.job import Job
from truststram.tasks import register_task
from truststram.tasks.breast_cancer import BreastCancer

pytestmark = pytest.mark.slow

ROUNDS, NODES = 3, 4
SECURE = {"tff.aggregator": "secure"}
MIME = {"tff.algorithm": "mime-lite", "train.momentum": 0.9}
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
    "mime-lite": MIME,
    "mime-lite, uniform": {**MIME, "tff.weighting": "uniform"},
    "mime-lite, adam": {**MIME, "server.optimizer": "adam"},
    "secure": SECURE,
    "secure, uniform": {**SECURE, "tff.weighting": "uniform"},
    "secure, no limits": {**SECURE, "tff.zeroing": False, "tff.clipping": False},
    "secure fed-prox": {**SECURE, "tff.algorithm": "fed-prox", "tff.proximal": 0.5},
    "secure fed-sgd": {**SECURE, "tff.algorithm": "fed-sgd", "server.lr": 0.5},
    "secure adam": {**SECURE, "server.optimizer": "adam"},
}


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
    sealed = plan.job["tff.aggregator"] == "secure"
    layers = {"secure.scheme": "secagg"} if sealed else {}
    changes = {**keys, **compiled, **more, **layers, "train.rounds": ROUNDS}
    result = run(tmp_path, "run", changes, nodes=NODES)
    assert result.ok
    settings = Job.of({"task.name": "breast-cancer"})
    expected = by_pieces(plan, BreastCancer(), settings, ROUNDS, NODES)
    model = load_model(tmp_path / "run" / "model.safetensors")
    for (name, first), weights in zip(plan.weights.items(), expected, strict=True):
        found = model[name].numpy()  # a saved model is sorted by name
        # Sums of integers do not depend on their order.
        np.testing.assert_allclose(found, weights, atol=0 if sealed else 1e-6, rtol=0)
        assert np.abs(weights - first).max() > 1e-3, "training changed nothing"
    assert all(r.train_metrics["train-examples"] > 0 for r in result.rounds)
