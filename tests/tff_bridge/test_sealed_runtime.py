"""A plan with secure sums that TFF compiled, under our masks (no TFF here).

That its pieces do what TFF's own executor does is in ``test_golden.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from server_app.checkpoint import load_model
from tests.support.runs import run
from tests.tff_bridge.by_pieces import by_pieces
from tests.tff_bridge.plans import SECURE
from tff_bridge.plan import read_plan
from tff_bridge.training import Training
from truststram.job import Job
from truststram.tasks import register_task
from truststram.tasks.breast_cancer import BreastCancer

# TensorFlow's own code, at import and when functions are traced.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROUNDS, NODES = 3, 4
JOB = {"task.name": "breast-cancer", "train.local-epochs": 2, "train.batch-size": 16}


class Hospitals(BreastCancer):
    """The plan's task, from the plan's weights."""

    def model(self, job, seed):
        model = super().model(job, seed)
        weights = read_plan(SECURE).weights
        model.load_state_dict({n: torch.tensor(w) for n, w in weights.items()})
        return model


def go(folder, run_id, **changes):
    register_task("breast-cancer", Hospitals)
    keys = {**JOB, "train.rounds": ROUNDS, **changes}
    result = run(folder, run_id, keys, nodes=NODES)
    model = load_model(folder / run_id / "model.safetensors")
    found = [model[name].numpy() for name in ("weight", "bias")]
    return result, found


def test_everything_that_silos_send_is_sealed():
    training = Training.of(read_plan(SECURE))
    assert Training.obstacles(training.plan) == []
    assert {leaf.slot for leaf in training.program.sent} == {"bitwidth"}
    assert (training.sealed.size, training.sealed.bits) == (91, 32)


@pytest.mark.parametrize("threat", ["semi-honest", "malicious"])
def test_masked_sums_are_tffs_own_secure_sums_bit_for_bit(tmp_path, threat):
    masks = {"secure.scheme": "secagg", "secure.threat": threat}
    result, found = go(tmp_path, "tff", **{"tff.plan": str(SECURE), **masks})
    expected = by_pieces(read_plan(SECURE), Hospitals(), Job.of(JOB), ROUNDS, NODES)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if threat == "semi-honest":
        torch_, plain = go(tmp_path, "torch")
        for ours, theirs in zip(found, plain, strict=True):
            assert np.abs(ours - theirs).max() <= 1e-5
        assert result.metrics["accuracy"] == torch_.metrics["accuracy"]
        assert result.rounds[-1].train_metrics["train-examples"] == 728
        losses = [r.rounds[-1].train_metrics["train-loss"] for r in (result, torch_)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
