"""Are two models connected by a path of low loss? ``truststram analyze connectivity``.

Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS
2018, section 3; UDP-FL (Feng et al., arXiv 2407.14710) looks at runs with and without
noise in this way. A straight line between two models that were trained apart usually
crosses a barrier, a trained curve usually does not; two runs whose line has no barrier
are in one basin, and can be averaged.

Mathematics: line ``(1 - t) A + t B``; curve ``(1 - t)^2 A + 2 t (1 - t) C + t^2 B``, C
trained by SGD on the loss at uniformly random t, from the middle of A and B. The
*barrier* is the highest loss on the path above the straight line between the losses at
its ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from .errors import ConfigError
from .job import Job
from .result import RunResult
from .rng import derive_seed
from .task import Node
from .tasks import load_task
from .tasks.torch_task import Examples, TorchTask

__all__ = ["Connectivity", "connectivity"]

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Connectivity:
    """Loss and accuracy along both paths, at ``t`` from 0 (A) to 1 (B).

    Attributes
    ----------
    t, line_loss, line_accuracy, curve_loss, curve_accuracy : lists of float
        On the server's test data.
    line_barrier, curve_barrier : float
        See the module; at most 0 where the path never rises above its ends.
    distance : float
        Euclidean distance of A and B.
    """

    t: list[float]
    line_loss: list[float]
    line_accuracy: list[float]
    curve_loss: list[float]
    curve_accuracy: list[float]
    line_barrier: float
    curve_barrier: float
    distance: float


def connectivity(
    a: RunResult, b: RunResult, *, points: int = 21, steps: int = 300, seed: int = 1
) -> Connectivity:
    """Compare the final models of two runs of one task.

    Parameters
    ----------
    points : int
        Where the paths are evaluated, >= 3.
    steps : int
        SGD steps for the curve, on the training data of all simulated nodes.
    seed : int

    Raises
    ------
    ConfigError
        For runs of different tasks or shapes, or a task without test data on the
        server.
    """
    job = Job.of(b.job)
    if a.job["task.name"] != b.job["task.name"]:
        raise ConfigError(
            f"Run {a.id} is of task {a.job['task.name']}, run {b.id} of "
            f"{b.job['task.name']}: expected one task."
        )
    task = load_task(job.task.name)
    test = task.test_data(job, None)
    if not isinstance(task, TorchTask) or not isinstance(test, Examples):
        raise ConfigError(f"Task {job.task.name} gives the server no test examples.")
    model = task.model(job, seed=0)
    first, last = _weights(a, model), _weights(b, model)
    train = _pooled(task, job, b.nodes)
    middle = _trained(model, first, last, train, job, steps, seed)
    ts = np.linspace(0, 1, points).tolist()
    line = [_at(task, job, model, test, _line(first, last, t)) for t in ts]
    curve = [_at(task, job, model, test, _curve(first, middle, last, t)) for t in ts]
    return Connectivity(
        t=ts,
        line_loss=[x[0] for x in line],
        line_accuracy=[x[1] for x in line],
        curve_loss=[x[0] for x in curve],
        curve_accuracy=[x[1] for x in curve],
        line_barrier=_barrier(ts, [x[0] for x in line]),
        curve_barrier=_barrier(ts, [x[0] for x in curve]),
        distance=sum(float((first[k] - last[k]).square().sum()) for k in first) ** 0.5,
    )


def write(found: Connectivity, a: str, b: str, folder: Path) -> tuple[Path, Path]:
    """Write ``connectivity.json`` and ``connectivity.png``; return their paths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    data, picture = folder / "connectivity.json", folder / "connectivity.png"
    data.write_text(json.dumps({"a": a, "b": b, **asdict(found)}, indent=2) + "\n")
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    figure.suptitle(f"From {a} (t = 0) to {b} (t = 1)")
    for axes, name in ((upper, "loss"), (lower, "accuracy")):
        axes.plot(found.t, getattr(found, f"line_{name}"), "C3-", label="straight line")
        axes.plot(
            found.t, getattr(found, f"curve_{name}"), "C0-", label="trained curve"
        )
        axes.set_ylabel(f"test {name}")
        axes.grid(alpha=0.3)
    upper.legend(frameon=False)
    lower.set_xlabel("t")
    figure.savefig(picture, dpi=120)
    return data, picture


def _weights(run: RunResult, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    path = run.dir / "model.safetensors"
    if not path.exists():
        raise ConfigError(f"Run {run.id} has no model.safetensors: it did not finish.")
    found = load_file(path)
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    if {k: tuple(v.shape) for k, v in found.items()} != shapes:
        raise ConfigError(f"The model of run {run.id} has other names or shapes.")
    return {k: v for k, v in found.items() if v.is_floating_point()}


def _pooled(task: TorchTask, job: Job, nodes: int) -> Examples:
    """Return the training examples of all simulated nodes."""
    parts = [
        task.train_data(job, Node(str(i), i, nodes, job.data.path or None))
        for i in range(nodes)
    ]
    return Examples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))


def _line(a: Weights, b: Weights, t: float) -> dict[str, torch.Tensor]:
    return {k: (1 - t) * a[k] + t * b[k] for k in a}


def _curve(a: Weights, c: Weights, b: Weights, t: float) -> dict[str, torch.Tensor]:
    w = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return {k: w[0] * a[k] + w[1] * c[k] + w[2] * b[k] for k in a}


def _trained(
    model: torch.nn.Module,
    a: Weights,
    b: Weights,
    data: Examples,
    job: Job,
    steps: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Return the control point C of the curve."""
    rng = np.random.default_rng(derive_seed(seed, "connectivity"))
    middle = {k: v.clone().requires_grad_() for k, v in _line(a, b, 0.5).items()}
    optimizer = torch.optim.SGD(middle.values(), lr=job.train.lr, momentum=0.9)
    model.train()
    for _ in range(steps):
        rows = torch.tensor(rng.integers(0, len(data), min(128, len(data))))
        weights = _curve(a, middle, b, float(rng.random()))
        scores = torch.func.functional_call(model, weights, (data.x[rows],))
        loss = torch.nn.functional.cross_entropy(scores, data.y[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        optimizer.step()
    return {k: v.detach() for k, v in middle.items()}


def _at(
    task: TorchTask, job: Job, model: torch.nn.Module, test: Examples, weights: Weights
) -> tuple[float, float]:
    """Return loss and accuracy of a model with these weights."""
    model.load_state_dict({**model.state_dict(), **weights})
    found: Mapping[str, Any] = task.evaluate(model, test, job)
    return float(found["loss"]), float(found["accuracy"])


def _barrier(ts: list[float], losses: list[float]) -> float:
    ends = [(1 - t) * losses[0] + t * losses[-1] for t in ts]
    return max(loss - end for loss, end in zip(losses, ends, strict=True))
