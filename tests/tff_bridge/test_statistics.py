"""A computation of a user's own, compiled, gives what numpy gives: alone, in a run."""

from __future__ import annotations

import numpy as np

from server_app.checkpoint import load_model
from tff_bridge.capabilities import compiled_settings
from tff_bridge.plan import read_plan
from truststram.engine import run_local
from truststram.job import Job
from truststram.result import RunResult
from truststram.task import Node
from truststram.tasks import register_task
from truststram.tasks.breast_cancer import BreastCancer

from .plans import STATISTICS


def test_moments_of_unequal_silos_are_those_of_all_data():
    from tff_bridge.execution import PieceFunction
    from tff_bridge.runtime import SiloRuntime

    program = read_plan(STATISTICS).programs["analytics"]
    call = {name: PieceFunction(piece, name) for name, piece in program.pieces.items()}
    assert (program.state, program.parameters, program.additive) == ((), (), True)
    silo, rng = SiloRuntime(program), np.random.default_rng(0)
    data = [
        (rng.normal(1, 2, (rows, 30)).astype(np.float32), rng.integers(0, 2, rows))
        for rows in (3, 100, 41)
    ]
    total = call["zero"]()
    for x, y in data:
        order = np.arange(len(x))[None]
        sent = silo.work(x, y, order, 16, call["prepare"]())
        total = call["accumulate"](*total, *sent)
    found = dict(
        zip(
            [leaf.path.rpartition("/")[2] for leaf in program.metrics],
            call["update"](*call["report"](*total)),
            strict=True,
        )
    )
    x, y = (np.concatenate(parts) for parts in zip(*data, strict=True))
    np.testing.assert_allclose(found["mean"], x.mean(0), atol=1e-5)
    np.testing.assert_allclose(found["variance"], x.var(0), atol=1e-4)
    np.testing.assert_array_equal(found["labels"], np.bincount(y))


def test_a_run_over_flower_gives_the_moments_of_all_silos(tmp_path):
    register_task("breast-cancer", BreastCancer)
    keys = {"tff.plan": str(STATISTICS), "run.dir": str(tmp_path), "run.id": "run"}
    job = Job.of({**compiled_settings(str(STATISTICS)), **keys})
    run_local(job, 4)
    found = RunResult.read(tmp_path / "run")
    parts = [
        BreastCancer().train_data(job, Node(partition=i, partitions=4))
        for i in range(4)
    ]
    x = np.concatenate([part.x.numpy() for part in parts]).astype(np.float64)
    y = np.concatenate([part.y.numpy() for part in parts])
    result = found.computed["result"]
    np.testing.assert_allclose(result["mean"], x.mean(0), atol=1e-5)
    np.testing.assert_allclose(result["variance"], x.var(0), atol=1e-4)
    assert result["labels"] == np.bincount(y).tolist()
    saved = load_model(tmp_path / "run" / "model.safetensors")
    assert sorted(saved) == ["labels", "mean", "variance"]
