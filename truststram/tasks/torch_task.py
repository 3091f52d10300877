"""A base for tasks that train a torch classifier with plain SGD.

A subclass says which model and which data; see :mod:`truststram.tasks.digits` for a
complete one in a few lines.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..errors import ConfigError, DataError
from ..job import Job
from ..partition import own_rows
from ..task import Node

__all__ = ["Examples", "TorchTask", "own_examples", "seeded_model"]

# Rows evaluated at once: bounds memory, changes no result.
_CHUNK = 1024

# torch's global generator belongs to the process.
_torch_rng = threading.RLock()


@dataclass(frozen=True)
class Examples:
    """Classified examples, held in memory.

    Attributes
    ----------
    x : Tensor of float32, shape (rows, ...)
        What the model takes.
    y : Tensor of int64, shape (rows,)
        Classes, from 0.

    Raises
    ------
    DataError
        If there are not as many labels as examples.
    """

    x: torch.Tensor
    y: torch.Tensor

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise DataError(f"{len(self.x)} examples with {len(self.y)} labels.")

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Examples:
        """Copy numpy arrays of any numeric type."""
        return cls(torch.tensor(x, dtype=torch.float32), torch.tensor(y).long())

    def take(self, rows: np.ndarray) -> Examples:
        """Return a copy of some rows, in the order given."""
        index = torch.from_numpy(rows)
        return Examples(self.x[index], self.y[index])


def own_examples(
    data: Examples, job: Job, node: Node
) -> tuple[Examples, Examples | None]:
    """Return what ``node`` trains on and what it holds out (None: nothing).

    Raises
    ------
    DataError
        If the data cannot be split as the job asks; see
        :func:`truststram.partition.own_rows`.
    """
    train, held_out = own_rows(job.data, node, data.y.numpy())
    return data.take(train), data.take(held_out) if len(held_out) else None


def seeded_model(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return ``factory()`` with initial weights that depend on ``seed`` only.

    The state of torch's random generator is the same before and after.
    """
    with _seeded(seed):
        return factory()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # Models are made on the CPU: generators of other devices are left alone.
    with _torch_rng, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class TorchTask(ABC):
    """A :class:`~truststram.task.Task` with cross-entropy loss and SGD.

    Subclasses implement :meth:`model`, :meth:`train_data` and :meth:`test_data`.

    Same model, data, job and seed give the same bits on the same machine, also when
    several threads train at once. Models with dropout train one at a time, because
    dropout draws from the generator that all threads share.
    """

    metrics: tuple[str, ...] = ("accuracy", "loss")

    @abstractmethod
    def model(self, job: Job, seed: int) -> nn.Module:
        """Return a new model that maps ``x`` to a score per class."""

    @abstractmethod
    def train_data(self, job: Job, node: Node) -> Examples:
        """Return the training examples of ``node``."""

    @abstractmethod
    def test_data(self, job: Job, node: Node | None) -> Examples | None:
        """Return held-out examples of ``node``, of the server for None, if any."""

    def train(
        self, model: nn.Module, data: Examples, job: Job, seed: int
    ) -> Mapping[str, float]:
        """Train ``model`` in place, where its weights are, as ``job.train`` says.

        Returns
        -------
        dict
            ``train-loss``: mean cross-entropy (nats) over all examples and epochs,
            each measured just before the step that uses it. Empty where single
            examples are protected: see :mod:`truststram.tasks.dp_sgd`.

        Raises
        ------
        DataError
            If there are no examples.
        ConfigError
            If the loss is not finite any more.
        """
        if job.privacy.on and job.privacy.unit == "example":
            from .dp_sgd import train_private  # needs torch task, and heavy libraries

            return train_private(model, data, job, seed)
        if len(data) == 0:
            raise DataError("There are no training examples on this node.")
        with _seeded(seed) if _draws(model) else nullcontext():
            loss = self._fit(model, data, job, np.random.default_rng(seed))
        if not math.isfinite(loss):
            raise ConfigError(
                f"train.lr = {job.train.lr:g}: local training diverged (the loss is "
                f"{loss}); use a smaller train.lr or train.momentum."
            )
        return {"train-loss": loss}

    def evaluate(
        self, model: nn.Module, data: Examples, job: Job
    ) -> Mapping[str, float]:
        """Return the fraction of correct classes and the mean cross-entropy (nats).

        Raises
        ------
        DataError
            If there are no examples.
        """
        if len(data) == 0:
            raise DataError("There are no examples to evaluate on.")
        device = _device(model)
        model.eval()
        correct, loss = 0, 0.0
        with torch.no_grad():
            for start in range(0, len(data), _CHUNK):
                y = data.y[start : start + _CHUNK].to(device)
                scores = model(data.x[start : start + _CHUNK].to(device))
                correct += int((scores.argmax(1) == y).sum())
                loss += float(nn.functional.cross_entropy(scores, y, reduction="sum"))
        return {"accuracy": correct / len(data), "loss": loss / len(data)}

    def _fit(
        self, model: nn.Module, data: Examples, job: Job, rng: np.random.Generator
    ) -> float:
        settings, device = job.train, _device(model)
        x, y = data.x.to(device), data.y.to(device)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=settings.lr, momentum=settings.momentum
        )
        model.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        for _ in range(settings.local_epochs):
            order = torch.from_numpy(rng.permutation(len(data))).to(device)
            for rows in torch.split(order, settings.batch_size):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
                optimizer.step()
                total += loss.detach() * len(rows)
        return float(total) / (len(data) * settings.local_epochs)


def _draws(model: nn.Module) -> bool:
    """Return whether training draws from torch's own generator, as far as can be seen.

    Recurrent and attention layers have a number called ``dropout``.
    """
    kinds = (nn.modules.dropout._DropoutNd, nn.RReLU)
    return any(isinstance(m, kinds) or hasattr(m, "dropout") for m in model.modules())


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
