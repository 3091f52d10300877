"""The local training of a whole cohort at once: one batched product for all clients.

All start from the same model, each has its own examples. A network is a chain of linear
layers with ReLU between them: no hidden layer is softmax regression.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks._robust_data import CLASSES
from truststram.records import Float32

__all__ = ["LINEAR", "MLP", "Network"]

PIXELS = 196
# Images whose losses are computed at once.
CHUNK = 10_000


@dataclass(frozen=True)
class Network:
    """Shape of a network.

    Attributes
    ----------
    name : str
    widths : tuple of int
        Values between the layers, pixels first, classes last.
    """

    name: str
    widths: tuple[int, ...]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes of the weights; each layer has as many biases as columns."""
        return list(zip(self.widths[:-1], self.widths[1:], strict=True))

    @property
    def size(self) -> int:
        """All parameters."""
        return sum((inputs + 1) * outputs for inputs, outputs in self.shapes)

    def initial(self, rng: np.random.Generator) -> Float32:
        """Return uniform weights in +-1/sqrt(inputs), as PyTorch's layers begin."""
        parts = [
            rng.uniform(-1, 1, (inputs + 1) * outputs) / inputs**0.5
            for inputs, outputs in self.shapes
        ]
        return np.concatenate(parts).astype(np.float32)

    def _layers(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return views of the weights (R, in, out) and biases (R, 1, out)."""
        layers, start = [], 0
        for inputs, outputs in self.shapes:
            middle, end = start + inputs * outputs, start + (inputs + 1) * outputs
            weights = flat[:, start:middle].view(-1, inputs, outputs)
            layers.append((weights, flat[:, middle:end].unsqueeze(1)))
            start = end
        return layers

    def train(self, flat: Tensor, x: Tensor, y: Tensor, lr: float) -> Tensor:
        """Return how SGD changes a model at each of R clients, shape (R, d).

        Parameters
        ----------
        flat : tensor of shape (d,)
        x : tensor of shape (steps, R, batch, pixels)
        y : tensor of shape (steps, R, batch)
        lr : float
        """
        models = flat.repeat(x.shape[1], 1)
        layers = self._layers(models)
        for images, labels in zip(x, y, strict=True):
            values = [images]
            for weights, biases in layers[:-1]:
                values.append(torch.baddbmm(biases, values[-1], weights).relu_())
            error = torch.softmax(
                torch.baddbmm(layers[-1][1], values[-1], layers[-1][0]), 2
            )
            error.scatter_add_(
                2, labels.unsqueeze(2), error.new_full((*labels.shape, 1), -1.0)
            )
            error /= labels.shape[1]
            for (weights, biases), value in zip(
                layers[::-1], values[::-1], strict=True
            ):
                back = None
                if value is not images:
                    back = torch.bmm(error, weights.transpose(1, 2)).mul_(value > 0)
                weights.baddbmm_(value.transpose(1, 2), error, alpha=-lr)
                biases.sub_(error.sum(1, keepdim=True), alpha=lr)
                if back is not None:
                    error = back
        return models.sub_(flat)

    def scores(self, flat: Float32, x: Tensor) -> Tensor:
        """Return one model's scores of images (n, pixels), shape (n, classes)."""
        layers = self._layers(torch.tensor(flat)[None])
        parts = []
        for images in torch.split(x, CHUNK):
            values = images
            for weights, biases in layers[:-1]:
                values = torch.addmm(biases[0], values, weights[0]).relu_()
            parts.append(torch.addmm(layers[-1][1][0], values, layers[-1][0][0]))
        return torch.cat(parts)


LINEAR = Network("linear", (PIXELS, CLASSES))  # 1,970 parameters
MLP = Network("MLP 196-32-10", (PIXELS, 32, CLASSES))  # 6,634 parameters
