"""Example-level privacy: an epoch of DP-SGD against a plain one and Opacus' modes.

Goals, one thread: at most 2.8 times a plain epoch for a CNN with a million parameters,
1.75 times for one with 26 thousand; stretch 2.2 and 1.4.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from opacus import PrivacyEngine
from threadpoolctl import threadpool_limits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._report import (
    Line,
    Trial,
    interleaved,
    line,
    main,
    milliseconds,
    progress,
)
from benchmarks.guard import network as large
from truststram.job import Job, Value
from truststram.task import Node
from truststram.tasks.torch_task import Examples, TorchTask, seeded_model

# Read by `python -m benchmarks`: other files that the figures depend on.
INPUTS = ("benchmarks/guard.py",)

SEED = 1
IMAGES, BATCH = 512, 64
MODES = ("hooks", "functorch", "ew", "ghost")
NOISE, CLIP, LR = 1.0, 1.0, 0.05


def small() -> nn.Module:
    """Return a convolutional network with 26,010 parameters for 28 x 28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


class Images(TorchTask):
    """A network on random images of ten classes."""

    def __init__(self, factory: Callable[[], nn.Module]) -> None:
        self._factory = factory
        rng = torch.Generator().manual_seed(SEED)
        x = torch.rand((IMAGES, 1, 28, 28), generator=rng)
        self.data = Examples(x, torch.randint(10, (IMAGES,), generator=rng))

    def model(self, job: Job, seed: int) -> nn.Module:
        """Return the network."""
        return seeded_model(self._factory, seed)

    def train_data(self, job: Job, node: Node) -> Examples:
        """Return all images."""
        return self.data

    def test_data(self, job: Job, node: Node | None) -> Examples | None:
        """Return nothing."""
        return None


def lines(quick: bool) -> Iterator[Line]:
    """Yield all lines; with ``quick`` fewer repeats."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield from compare(large, 2.8, 2.2, repeats=1 if quick else 7)
        yield from compare(small, 1.75, 1.4, repeats=4 if quick else 40)


def compare(
    factory: Callable[[], nn.Module], goal: float, stretch: float, repeats: int
) -> Iterator[Line]:
    """Yield the time of an epoch against plain training and against Opacus."""
    task = Images(factory)
    size = sum(p.numel() for p in factory().parameters())
    progress(f"dp_sgd: a network with {size:,} parameters")
    trials = {"plain": _ours(task), "ours": _ours(task, private=True)}
    trials |= {mode: _opacus(task, mode) for mode in MODES}
    times = milliseconds(interleaved(trials, repeats))
    what = (
        f"an epoch on {IMAGES} random 28x28 images, batch {BATCH}, CNN with {size:,} "
        f"parameters, one thread, best of {repeats} in turns"
    )
    for name, limit in (("", goal), (", stretch", stretch)):
        yield line(
            f"DP-SGD, {size:,} parameters{name}",
            times["ours"],
            times["plain"],
            goal=f"ratio <= {limit:g}",
            unit="ms",
            seeds=[SEED],
            note="ours: TorchTask.train with privacy.unit = example: Poisson batches, "
            "book-keeping, noise on the lattice from AES-256-CTR, and the trial of the "
            "model (calibration is done once a run and not in it); peer: "
            f"TorchTask.train without privacy; {what}",
        )
    for mode in MODES:
        yield line(
            f"DP-SGD, {size:,} parameters, against Opacus {mode}",
            times["ours"],
            times[mode],
            goal="ratio >= 1" if mode == "hooks" else None,
            unit="ms",
            seeds=[SEED],
            note=f"peer: PrivacyEngine, grad_sample_mode={mode!r}"
            f"{' (its default)' if mode == 'hooks' else ''}, batches of exactly "
            f"{BATCH}, float noise from torch; it takes "
            f"{times[mode] / times['plain']:.2f} plain epochs; {what}",
        )


def _ours(task: Images, *, private: bool = False) -> Trial:
    """Return the trial of one epoch through the SDK."""
    keys: dict[str, Value] = {
        "train.local-epochs": 1,
        "train.batch-size": BATCH,
        "train.lr": LR,
    }
    if private:
        keys |= {"privacy.mechanism": "dp-sgd", "privacy.unit": "example"}
    job = Job.of(keys)
    model = task.model(job, SEED)
    return lambda: lambda: task.train(model, task.data, job, SEED)


def _opacus(task: Images, mode: str) -> Trial:
    """Return the trial of one epoch of Opacus, without its data loader."""
    warnings.filterwarnings("ignore", module="opacus")
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    model = task.model(Job(), SEED)
    data = TensorDataset(task.data.x, task.data.y)
    made = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR),
        criterion=nn.CrossEntropyLoss(),
        data_loader=DataLoader(data, batch_size=BATCH),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    private, optimizer = made[0], made[1]
    loss = made[2] if mode == "ghost" else nn.functional.cross_entropy

    def epoch() -> None:
        for rows in torch.split(torch.randperm(IMAGES), BATCH):
            optimizer.zero_grad()
            loss(private(task.data.x[rows]), task.data.y[rows]).backward()
            optimizer.step()

    return lambda: epoch


if __name__ == "__main__":
    main(__doc__, lines)
