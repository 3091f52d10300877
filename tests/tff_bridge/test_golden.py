"""Plans on plain TensorFlow against TensorFlow Federated's own executor, and torch.

Slow: needs TensorFlow Federated's environment, which uv provides (or
``TRUSTSTRAM_TFF_PYTHON``). All jobs are compiled and run natively by one process.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from server_app.checkpoint import load_model
from tests.support.runs import run
from tff_bridge import compiler
from tff_bridge.evaluation import Evaluation
from tff_bridge.job import CrossSiloJob, read_job
from tff_bridge.plan import read_plan
from tff_bridge.subprocess_tree import run_bounded
from tff_bridge.trace import trace
from truststram.errors import ConfigError
from truststram.tasks import register_task
from truststram.tasks.torch_task import Examples, TorchTask

from .models import MODELS, Mlp
from .plans import BREAST_CANCER, SECURE, STATISTICS

pytestmark = pytest.mark.slow

ROUNDS = 3
# Unequal, and not multiples of the batch.
SILOS = (33, 8, 61, 20)
BASE = {
    "task.name": "golden",
    "train.lr": 0.1,
    "train.local-epochs": 2,
    "train.batch-size": 16,
}
# The order of a silo's examples, which nodes draw, then does not matter.
ONE_BATCH = {**BASE, "train.batch-size": 64}
SGD = {"tff.algorithm": "fed-sgd", "train.batch-size": 16, "server.lr": 0.5}
SECURE_SUMS = {"tff.aggregator": "secure"}
NO_LIMITS = {"tff.zeroing": False, "tff.clipping": False}
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
    "secure": {**BASE, **SECURE_SUMS},
    "secure, one batch": {**ONE_BATCH, **SECURE_SUMS},
    "secure, no limits": {**ONE_BATCH, **SECURE_SUMS, **NO_LIMITS},
    "dp without noise": {**BASE, **DP},
}
OTHERS = {kind.__name__: kind for kind in MODELS if kind is not Mlp}
JOBS |= {name: {**BASE, "tff.allow-frozen-bn": name == "Frozen"} for name in OTHERS}
# Steep: rounding of two versions of TensorFlow would grow to 1.1e-6 in three rounds.
JOBS["Activations"]["train.lr"] = 0.01
RANDOM = {"dp": {**BASE, **DP, "tff.noise-multiplier": 2.0}}
TO_NATIVE, TO_TORCH = 1e-6, 1e-5


def silos(name):
    rng, example = np.random.default_rng(1), kind_of(name).example
    data = []
    for rows in SILOS:
        shape = (rows, *example.shape[1:])
        if example.dtype == torch.int64:
            x = rng.integers(0, 30, shape)
        else:
            x = rng.normal(size=shape).astype(np.float32)
        data.append((x, rng.integers(0, 4, rows)))
    return data


def kind_of(name):
    return OTHERS.get(name, Mlp)


def model(name):
    torch.manual_seed(3)
    return kind_of(name)()


@pytest.fixture(scope="module")
def compiled(request, tmp_path_factory):
    """Return (plan, model after each round) by job, for the jobs that are tested."""
    tested = {
        item.callspec.params.get("name")
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    root = tmp_path_factory.mktemp("golden")
    every = {**JOBS, **RANDOM}
    jobs = {name: CrossSiloJob.of(every[name]) for name in every if name in tested}
    folders, models = [], {}
    for number, (name, job) in enumerate(jobs.items()):
        folders.append(root / str(number))
        (folders[-1] / "in").mkdir(parents=True)
        example = kind_of(name).example[:2]
        models[name] = trace(model(name), example, allow_frozen_bn=True)
        compiler.write_input(job, models[name], folders[-1] / "in")
        np.savez(folders[-1] / "in" / "silos.npz", **arrays(name, models[name]))
    script = str(compiler._HERE.parent / "tests" / "tff_bridge" / "native_rounds.py")
    status, output = run_bounded(
        [*compiler.tff_python(), script, *map(str, folders)],
        environment=compiler.tff_environment(),
        time_limit=1200,
    )
    assert status == 0, output[-3000:]
    return {
        name: (
            compiler._assembled(job, models[name], f / "out"),
            dict(np.load(f / "native.npz")),
        )
        for (name, job), f in zip(jobs.items(), folders, strict=True)
    }


def arrays(name, traced):
    """Return what the native run starts from."""
    found = {"rounds": ROUNDS, "silos": len(SILOS), "weights": len(traced.weights)}
    found |= {f"w{i}": w for i, w in enumerate(traced.weights.values())}
    for i, (x, y) in enumerate(silos(name)):
        found |= {f"x{i}": x, f"y{i}": y}
    return found


def run_plan(plan, name):
    """Yield the model after each round of the plan on plain TensorFlow."""
    from tff_bridge.execution import PieceFunction
    from tff_bridge.runtime import SiloRuntime

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
        for x, y in silos(name):
            order = np.tile(np.arange(len(x)), (plan.job["train.local-epochs"], 1))
            sent = silo.work(x, y, order, plan.job["train.batch-size"], prepared)
            total = list(call["accumulate"](*total, *sent[:clear]))
            sealed.append(sent[clear:])
        for leaf, *terms in zip(program.sent[clear:], *sealed, strict=True):
            assert all((t >= 0).all() and (t < leaf.limit).all() for t in terms)
        sums = [
            np.asarray(np.sum(terms, axis=0, dtype=terms[0].dtype))
            for terms in zip(*sealed, strict=True)
        ]
        state = list(call["update"](*state, *call["report"](*total), *sums))
        state = state[: len(program.state)]
        yield [state[place] for place in program.parameters]


@pytest.mark.parametrize("name", JOBS)
def test_a_plan_does_what_tff_does(compiled, name):
    plan, native = compiled[name]
    for number, weights in enumerate(run_plan(plan, name), start=1):
        worst = distance(
            weights, [native[f"{number}-{i}"] for i in range(len(weights))]
        )
        assert worst <= TO_NATIVE
    print(f"{name}: max |dw| to TFF's executor {worst:.1e}")
    moved = distance(weights, plan.weights.values())
    assert moved > 1e-3, "training changed nothing"


class Golden(TorchTask):
    """The silos of this file as the nodes of a federation."""

    def model(self, job, seed):
        return model("secure")

    def train_data(self, job, node):
        x, y = silos("secure")[node.partition]
        return Examples(torch.tensor(x), torch.tensor(y))

    def test_data(self, job, node):
        return None


@pytest.mark.parametrize("name", ["secure, one batch", "secure, no limits"])
def test_masked_sums_over_flower_do_what_tff_does(compiled, name, tmp_path):
    """The whole round: messages, masks, exact sums; TFF adds up in clear."""
    plan, native = compiled[name]
    register_task("golden", Golden)
    plan.write(tmp_path / "job.tffplan")
    keys = {"tff.plan": str(tmp_path / "job.tffplan"), "secure.scheme": "secagg"}
    settings = {**ONE_BATCH, **keys, "train.rounds": ROUNDS}
    assert run(tmp_path, "run", settings, nodes=len(SILOS)).ok
    found = load_model(tmp_path / "run" / "model.safetensors")
    weights = [found[name].numpy() for name in plan.weights]
    worst = distance(weights, [native[f"{ROUNDS}-{i}"] for i in range(len(weights))])
    assert worst <= TO_NATIVE
    print(f"{name}: max |dw| under masks to TFF's executor {worst:.1e}")
    assert distance(weights, plan.weights.values()) > 1e-3


@pytest.mark.parametrize("name", ["fed-avg", "Cnn", "fed-sgd", "secure"])
def test_a_plan_evaluates_as_tff_does(compiled, name):
    """On the data of training, which TFF's executor has, in passes of one batch."""
    from tff_bridge.runtime import CoordinatorRuntime, SiloRuntime

    plan, native = compiled[name]
    part = Evaluation.of(plan)
    silo, server = SiloRuntime(part.program), CoordinatorRuntime(part.program)
    weights = [native[f"{ROUNDS}-{i}"] for i in range(len(plan.weights))]
    terms = []
    for x, y in silos(name):
        leaves = silo.work(x, y, None, part.batch_size, weights)
        terms.append(part.sums(part.metrics(leaves)))
    found = server.result(server.init(), part.total(terms))
    for metric in ("loss", "accuracy"):
        ours, theirs = found[part.finished[metric]], native[f"evaluation-{metric}"]
        assert abs(ours - theirs) <= TO_NATIVE
        print(f"{name}: {metric} {ours:.6f}, to TFF's {abs(ours - theirs):.1e}")


def distance(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def learnt(model):
    return [p for p in model.parameters() if p.requires_grad]


def torch_fed_avg(name, weighting):
    """Federated averaging as a plain loop (McMahan et al., AISTATS 2017)."""
    server = model(name)
    for _ in range(ROUNDS):
        updates, counts = [], []
        for x, y in silos(name):
            local = copy.deepcopy(server)
            sgd = torch.optim.SGD(learnt(local), lr=JOBS[name]["train.lr"])
            for _ in range(BASE["train.local-epochs"]):
                for rows in torch.arange(len(x)).split(BASE["train.batch-size"]):
                    sgd.zero_grad()
                    scores = local(torch.tensor(x)[rows])
                    nn.functional.cross_entropy(
                        scores, torch.tensor(y)[rows]
                    ).backward()
                    sgd.step()
            updates.append([p.detach() for p in learnt(local)])
            counts.append(len(x) if weighting == "examples" else 1)
        with torch.no_grad():
            for i, p in enumerate(learnt(server)):
                parts = [n * u[i] for n, u in zip(counts, updates, strict=True)]
                p.copy_(sum(parts) / sum(counts))
    return [p.detach().numpy() for p in learnt(server)]


@pytest.mark.parametrize(
    ("name", "weighting"),
    [
        *(("fed-avg", "examples"), ("uniform", "uniform"), ("secure", "examples")),
        *((name, "examples") for name in OTHERS),
    ],
)
def test_a_plan_does_what_torch_does(compiled, name, weighting):
    plan, _ = compiled[name]
    *_, weights = run_plan(plan, name)
    worst = distance(weights, torch_fed_avg(name, weighting))
    assert worst <= TO_TORCH
    print(f"{name}: max |dw| to torch {worst:.1e}")


@pytest.mark.parametrize("name", RANDOM)
def test_the_plans_own_noise_is_what_the_plan_says(compiled, name):
    """21,000 draws without a seed: fails without cause less than once in a million."""
    from tff_bridge.execution import PieceFunction
    from tff_bridge.runtime import SiloRuntime

    plan, _ = compiled[name]
    program, privacy = plan.programs["train"], plan.privacy
    call = {name: PieceFunction(piece, name) for name, piece in program.pieces.items()}
    assert {leaf.role for leaf in program.sent} == {"update"}, "metrics are releases"
    state = call["init"]()
    x, y = silos(name)[0]
    order = np.tile(np.arange(len(x)), (20, 1))  # far enough to be clipped
    sent = SiloRuntime(program).work(x, y, order, 4, call["prepare"](*state))
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in sent))
    np.testing.assert_allclose(norm, privacy["clip"], rtol=1e-5)
    report = call["report"](*call["zero"]())
    draws = []
    for _ in range(50):
        moved = call["update"](*state, *report)
        draws += [(moved[i] - state[i]).ravel() for i in program.parameters]
    noise = np.concatenate(draws)
    expected = privacy["noise-multiplier"] * privacy["clip"]
    expected /= privacy["clients-per-round"]
    # The standard error of a standard deviation is 1 / sqrt(2 n) of it.
    assert abs(noise.std() / expected - 1) < 5 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 5 * expected / np.sqrt(noise.size)
    assert kstest(noise / expected, "norm").pvalue > 1e-7


@pytest.mark.parametrize(
    "path", [BREAST_CANCER, SECURE, STATISTICS], ids=lambda p: p.stem
)
def test_a_committed_plan_is_what_its_job_compiles_to(path):
    """And so a job always gives the same plan, bit for bit."""
    plan = compiler.compile_job(read_job(path.with_suffix(".toml")))
    assert plan.sha256 == read_plan(path).sha256
    assert plan.to_bytes() == path.read_bytes()


def test_what_tff_refuses_comes_in_one_line(tmp_path):
    (tmp_path / "own.py").write_text("computation = 3\n")
    job = CrossSiloJob.of({"tff.computation": str(tmp_path / "own.py")})
    with pytest.raises(ConfigError, match="defines no `computation`") as error:
        compiler.compile_job(job)
    assert "\n" not in str(error.value)
