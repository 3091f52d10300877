"""Updates that codecs are measured on: synthetic ones, and those of a CNN in training.

The CNN is the one of `benchmarks.guard` (996,206 parameters) on Fashion-MNIST. Five
clients, each with 3 of the 10 classes, train it for 8 steps a round; what the codec
leaves out is added to a client's next update (error feedback).
"""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks._robust_data import VARIABLE
from benchmarks.guard import network
from strategies.compression.codecs import Codec
from truststram.records import Float32
from truststram.tasks.fashion_mnist import _load, _scaled

__all__ = ["heavy_tailed", "incompressible", "real"]

CLIENTS, CLASSES, STEPS, BATCH = 5, 3, 8, 32


def heavy_tailed(d: int, seed: int) -> Float32:
    """Return d values with Student's t distribution, 4 degrees of freedom."""
    return np.random.default_rng(seed).standard_t(4, d).astype(np.float32)


def incompressible(d: int, k: int, seed: int) -> Float32:
    """Return an update whose k largest values are uniform: 8 bits are 8 bits."""
    rng = np.random.default_rng(seed)
    x = np.zeros(d, np.float32)
    codes = rng.integers(2, 128, k) * rng.choice([-1, 1], k)
    codes[::1000], codes[1] = 127, 2
    x[np.sort(rng.permutation(d)[:k])] = codes
    return x


def real(codec: Codec, rounds: int, seed: int) -> list[tuple[Float32, Float32]]:
    """Train with a codec and return (update, update and residual) of the clients.

    Parameters
    ----------
    codec : Codec
        Of the uplink; without a public selection.
    rounds : int
    seed : int

    Returns
    -------
    list of pairs of float32 arrays
        Of every client, in the last round.
    """
    data = _scaled(_load(os.environ.get(VARIABLE, ""))[0])
    labels = data.y.numpy()
    rng = np.random.default_rng(seed)
    pools = [
        np.flatnonzero(np.isin(labels, rng.choice(10, CLASSES, replace=False)))
        for _ in range(CLIENTS)
    ]
    torch.manual_seed(seed)
    model = network()
    weights = _weights(model)
    residuals = [np.zeros_like(weights) for _ in pools]
    found: list[tuple[Float32, Float32]] = []
    for _ in range(rounds):
        found, total = [], np.zeros_like(weights)
        for number, pool in enumerate(pools):
            batches = rng.choice(pool, (STEPS, BATCH))
            update = _trained(model, weights, data.x, data.y, batches) - weights
            sent = update + residuals[number]
            got = codec.decode(codec.encode(sent, rng), len(sent))
            residuals[number] = sent - got
            total += got / CLIENTS
            found.append((update, sent))
        weights = weights + total
    return found


def _weights(model: nn.Module) -> Float32:
    vector = nn.utils.parameters_to_vector(model.parameters())
    weights: Float32 = vector.detach().numpy().copy()
    return weights


def _trained(
    model: nn.Module,
    weights: Float32,
    x: torch.Tensor,
    y: torch.Tensor,
    batches: NDArray[np.int64],
) -> Float32:
    """Return the weights after SGD on the batches of rows."""
    nn.utils.vector_to_parameters(torch.tensor(weights), model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for rows in torch.tensor(batches):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        optimizer.step()
    return _weights(model)
