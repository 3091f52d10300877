"""Digits in four hospitals of unequal size, for the benchmark of the TFF bridge."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from truststram.job import Job
from truststram.task import Node
from truststram.tasks.digits import Digits
from truststram.tasks.torch_task import Examples, TorchTask, seeded_model

__all__ = ["NAME", "SILOS", "Silos", "starting_from"]

NAME = "tff-silos"
SILOS = (200, 300, 400, 537)


class Silos(TorchTask):
    """8 x 8 digits by an MLP of 64-64-10; every silo has rows of its own."""

    def model(self, job: Job, seed: int) -> nn.Module:
        """Return the MLP (4,810 weights)."""
        return seeded_model(_mlp, seed)

    def train_data(self, job: Job, node: Node) -> Examples:
        """Return the silo's rows."""
        all_rows = Digits().train_data(
            job.replace({"data.partitioner": "iid"}),
            Node(partition=0, partitions=1),
        )
        ends = np.cumsum(SILOS)
        silo = node.partition or 0
        # The task holds out a fifth of a node's share: the rest is divided by size.
        bounds = np.array([0, *ends]) * len(all_rows) // ends[-1]
        return all_rows.take(np.arange(bounds[silo], bounds[silo + 1]))

    def test_data(self, job: Job, node: Node | None) -> Examples | None:
        """Return the server's test set."""
        return Digits().test_data(job, None) if node is None else None


def starting_from(
    kind: type[TorchTask], weights: Mapping[str, NDArray[np.float32]]
) -> type[TorchTask]:
    """Return a task like ``kind`` whose model has the given initial weights."""
    state = {name: torch.tensor(values) for name, values in weights.items()}

    class Started(kind):  # type: ignore[misc, valid-type]  # a class made of another
        def model(self, job: Job, seed: int) -> nn.Module:
            model: nn.Module = super().model(job, seed)
            model.load_state_dict(state)
            return model

    return Started


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
