"""A plan that TFF compiled, executed by plain TensorFlow (no TFF here).

Comparison with TFF's own executor is in the slow suites.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from server_app.checkpoint import load_model
from tests.support.runs import model_bytes, run
from tff_bridge import client
from tff_bridge.execution import PieceFunction
from tff_bridge.manifest import Leaf, Piece
from tff_bridge.plan import read_plan
from tff_bridge.runtime import CoordinatorRuntime, SiloRuntime
from tff_bridge.training import Training
from truststram.errors import RunError
from truststram.tasks.breast_cancer import BreastCancer

# TensorFlow's own code, at import and when functions are traced.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PLAN = Path(__file__).parent / "plans" / "breast-cancer.tffplan"
ROUNDS = {"train.rounds": 3, "train.local-epochs": 2, "train.batch-size": 16}


@pytest.fixture(scope="module")
def training():
    return Training.of(read_plan(PLAN))


class Hospitals(BreastCancer):
    """The plan's task, from the plan's weights; hospitals of unequal size."""

    def model(self, job, seed):
        import torch

        model = super().model(job, seed)
        weights = read_plan(PLAN).weights
        model.load_state_dict({n: torch.tensor(w) for n, w in weights.items()})
        return model


def go(folder, run_id, **changes):
    keys = {**ROUNDS, "task.name": "breast-cancer", **changes}
    from truststram.tasks import register_task

    register_task("breast-cancer", Hospitals)
    return run(folder, run_id, keys, nodes=4)


def weights(folder, run_id) -> np.ndarray:
    model = load_model(folder / run_id / "model.safetensors")
    return np.concatenate([model[n].numpy().ravel() for n in ("weight", "bias")])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The torch job and the plan, three rounds on the same four hospitals."""
    folder = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.setattr("server_app.main.curves", lambda result: result.dir)
    torch = go(folder, "torch")
    tff = go(folder, "tff", **{"tff.plan": str(PLAN)})
    yield folder, torch, tff
    patch.undo()


def test_making_the_batches_is_part_of_the_time_for_work(training, monkeypatch):
    @contextmanager
    def slow(*arguments):
        time.sleep(0.05)
        yield

    runtime, seconds = SiloRuntime(training.program), []
    monkeypatch.setattr(runtime._batches, "of", slow)
    work = lambda *arguments, seconds: seconds  # noqa: E731  # shorter than a def
    monkeypatch.setattr(runtime, "_pieces", {"work": work})
    for given in (None, 9.0, 0.01):
        seconds.append(runtime.work(None, None, None, 1, [], seconds=given))
    assert seconds[0] is None
    assert 8 < seconds[1] <= 8.95
    assert seconds[2] == 0


def test_a_plan_over_flower_is_torchs_federated_averaging(runs):
    folder, torch, tff = runs
    difference = np.abs(weights(folder, "tff") - weights(folder, "torch"))
    assert difference.max() <= 1e-5
    assert np.abs(weights(folder, "torch")).max() > 0.1
    for ours, theirs in zip(tff.rounds, torch.rounds, strict=True):
        loss = theirs.train_metrics["train-loss"]
        assert ours.train_metrics["train-loss"] == pytest.approx(loss, rel=1e-5)
        assert ours.train_metrics["train-examples"] == 728  # 364 in two passes
        # The update and three sums; the model, and the hash of the plan.
        assert ours.bytes_up <= theirs.bytes_up + 4 * 50
        assert ours.bytes_down <= theirs.bytes_down + 4 * 100
    assert tff.metrics["accuracy"] == torch.metrics["accuracy"]


def test_torch_and_tensorflow_silos_reach_the_same_weights(runs, monkeypatch):
    folder, _, _ = runs
    monkeypatch.setattr(client, "uses_torch", lambda c: int(c["partition-id"]) < 2)
    mixed = go(folder, "mixed", **{"tff.plan": str(PLAN), "tff.mixed": True})
    assert {r.replies for r in mixed.rounds} == {4}
    difference = np.abs(weights(folder, "mixed") - weights(folder, "torch"))
    assert difference.max() <= 1e-5


def test_silos_evaluate_with_the_plan_what_torch_finds(runs, monkeypatch):
    folder, _, _ = runs
    ask = {"round.evaluate": "clients", "train.rounds": 2}
    torch = go(folder, "asked-torch", **ask)
    tff = go(folder, "asked-tff", **ask, **{"tff.plan": str(PLAN)})
    monkeypatch.setattr(client, "uses_torch", lambda c: int(c["partition-id"]) < 2)
    mixed = {**ask, "tff.plan": str(PLAN), "tff.mixed": True}
    mixed = go(folder, "asked-mixed", **mixed)
    assert {*tff.metrics} == {"accuracy", "loss"}
    for found in (tff, mixed):
        for ours, theirs in zip(found.rounds, torch.rounds, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-6)
            assert ours.codes == {}


def test_a_plan_repeats_bit_for_bit_and_resumes(runs):
    folder, _, _ = runs
    plan = {"tff.plan": str(PLAN)}
    go(folder, "again", **{**plan, "train.rounds": 2})
    go(folder, "again", **plan, **{"run.resume": "again"})
    assert model_bytes(folder, "again") == model_bytes(folder, "tff")


def test_the_sum_of_pieces_is_accumulate(training):
    """What our layers add up is what TFF's own ``accumulate`` does."""
    rng, layout = np.random.default_rng(3), training.layout
    terms = [
        [
            rng.integers(0, 99, [n or 0 for n in x.shape]).astype(x.dtype)
            for x in layout.leaves
        ]
        for _ in range(3)
    ]
    pieces = training.program.pieces
    total = PieceFunction(pieces["zero"], "zero")()
    accumulate = PieceFunction(pieces["accumulate"], "accumulate")
    for leaves in terms:
        total = accumulate(*total, *leaves)
    for found, *added in zip(total, *terms, strict=True):
        np.testing.assert_array_equal(found, sum(added))


def test_batches_do_not_span_passes(training):
    """40 examples in batches of 16 are 3 steps a pass: a wrong cut gives others."""
    silo, server = SiloRuntime(training.program), CoordinatorRuntime(training.program)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 30)).astype("f4"), rng.integers(0, 2, 40)
    order = np.stack([rng.permutation(40) for _ in range(2)])
    prepared = server.prepare(server.init())
    found = training.layout.reply(silo.work(x, y, order, 16, prepared))
    w, b = np.zeros((2, 30)), np.zeros(2)
    for rows in [*np.split(order[0], [16, 32]), *np.split(order[1], [16, 32])]:
        scores = x[rows] @ w.T + b
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        shares[np.arange(len(rows)), y[rows]] -= 1
        w -= 0.1 * shares.T @ x[rows] / len(rows)
        b -= 0.1 * shares.mean(0)
    np.testing.assert_allclose(found.delta, np.concatenate([w.ravel(), b]), atol=1e-6)
    assert found.examples == 40


def test_training_that_diverges_is_said(training):
    silo = SiloRuntime(training.program)
    x, y = np.full((4, 30), np.nan, np.float32), np.zeros(4, np.int64)
    prepared = [np.zeros((2, 30), np.float32), np.zeros(2, np.float32)]
    leaves = silo.work(x, y, np.arange(4)[None], 4, prepared)
    with pytest.raises(Exception, match="it diverged"):
        training.layout.reply(leaves)


def piece_of(build, *shapes) -> PieceFunction:
    """A piece with the graph that ``build`` makes of float32 placeholders."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        given = [tf.compat.v1.placeholder(tf.float32, shape) for shape in shapes]
        out = build(tf, *given)
    inputs = tuple(Leaf("x", x.name, "float32", tuple(x.shape)) for x in given)
    outputs = (Leaf("x", out.name, "float32", ()),)
    data = graph.as_graph_def().SerializeToString()
    return PieceFunction(Piece(inputs, outputs, graph=data), "work")


def test_a_graph_that_does_not_end_is_stopped():
    def endless(tf, x):
        return tf.while_loop(lambda v: v < 2.0, lambda v: v * 0.5, [x])[0]

    piece, start = piece_of(endless, ()), time.monotonic()
    with pytest.raises(RunError, match=r"work took more than 0\.5 seconds"):
        piece(np.array(1, np.float32), seconds=0.5)
    assert time.monotonic() - start < 20
    assert piece(np.array(3, np.float32), seconds=5)[0] == 3  # and goes on


def test_an_initialisation_that_does_not_end_is_stopped():
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        zero = tf.compat.v1.placeholder_with_default(0.0, ())
        loop = tf.while_loop(lambda v: v < 2.0, lambda v: v * 0.5, [zero])[0]
        out = tf.constant(1.0)
    data = graph.as_graph_def().SerializeToString()
    piece = Piece((), (Leaf("x", out.name, "float32", ()),), loop.op.name, graph=data)
    start = time.monotonic()
    with pytest.raises(RunError, match=r"init took more than 0\.5 seconds"):
        PieceFunction(piece, "init")(seconds=0.5)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("graph", [b"", b"\xff", b"\x0a\x09\x0a\x01x\x12\x04Nope"])
def test_a_graph_that_tensorflow_cannot_load_is_one_sentence(graph):
    piece = Piece((), (Leaf("x", "gone:0", "float32", ()),), graph=graph)
    with pytest.raises(RunError, match=r"could not run work .*log of this machine"):
        PieceFunction(piece, "work")


def test_the_text_of_an_error_stays_on_the_machine(capsys):
    """``Assert`` prints tensors: they may be private data."""

    def check(tf, x):
        with tf.control_dependencies([tf.debugging.Assert(x < 0, [x])]):
            return tf.identity(x)

    with pytest.raises(RunError, match="in the log of this machine") as error:
        piece_of(check, ())(np.array(123456.5, np.float32))
    assert "123456" not in str(error.value)
    assert error.value.__context__ is None
    assert error.value.__cause__ is None


def test_gaps_between_stitched_rows_are_no_old_memory():
    """TensorFlow before 2.21 left them unwritten; attention's gradients need it."""
    import tensorflow as tf

    def remains(make) -> bool:
        found = False
        for size in (20, 1000, 60_000) * 5:
            freed = [tf.fill([size], 12345) + 1 for _ in range(3)]
            del freed
            found |= bool(np.any(make(size).numpy()))
        return found

    last = np.zeros(1, np.int32)
    ops = tf.raw_ops
    assert not remains(lambda n: ops.DynamicStitch(indices=[[n - 1]], data=[last]))
    # That memory is there to be seen.
    assert remains(lambda n: ops.Empty(shape=[n], dtype=tf.int32, init=False))
