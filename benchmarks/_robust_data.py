"""Fashion-MNIST in 14 x 14 pixels, and which examples each client holds."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from truststram.errors import DataError
from truststram.rng import derive
from truststram.tasks.fashion_mnist import _load

__all__ = ["CLASSES", "CLIENTS", "EXAMPLES", "VARIABLE", "Split", "check", "split"]

CLIENTS, EXAMPLES, CLASSES = 20, 300, 10
# Names the folder with the four original files; `--data` sets it.
VARIABLE = "TRUSTSTRAM_DATA"
# Of the training images: the clients' and, for development, the test images.
POOL, VALIDATION = slice(0, 50_000), slice(50_000, 55_000)


@dataclass(frozen=True)
class Split:
    """Images (n, 196) and labels (n,): each client's 300, and those tested on."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def check() -> None:
    """End the program with what to do if the images are nowhere."""
    try:
        _images()
    except DataError as error:
        sys.exit(
            f"{error}\nFor this benchmark: --data DIR or {VARIABLE}=DIR names the "
            "folder; otherwise the Debian package's folder and then the hub are tried."
        )


@lru_cache(maxsize=1)
def _images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return training and test images with their labels, pixels in [0, 1]."""
    train, test = _load(os.environ.get(VARIABLE, ""))
    return (_pooled(train.x), train.y), (_pooled(test.x), test.y)


def _pooled(images: Tensor) -> Tensor:
    small = [
        torch.nn.functional.avg_pool2d(part.float() / 255, 2)
        for part in torch.split(images, 10_000)
    ]
    return torch.cat(small).reshape(len(images), -1)


@lru_cache(maxsize=4)
def split(
    alpha: float | None, seed: int, validation: bool, clients: int = CLIENTS
) -> Split:
    """Deal out the examples.

    Parameters
    ----------
    alpha : float or None
        Each client's label proportions are drawn from Dir(alpha); None: IID.
    seed : int
    validation : bool
        Test on training images 50,000 to 54,999, as in development.
    clients : int
    """
    (train_x, train_y), test = _images()
    rng = derive(seed, "robust-accuracy", "split", str(alpha))
    labels = train_y[POOL].numpy()
    if alpha is None:
        rows = rng.permutation(len(labels))[: clients * EXAMPLES]
    else:
        rows = np.concatenate(list(_dirichlet(labels, alpha, rng, clients)))
    if validation:
        test = train_x[VALIDATION], train_y[VALIDATION]
    shape = (clients, EXAMPLES)
    chosen = torch.tensor(rows)
    x, y = train_x[chosen].reshape(*shape, -1), train_y[chosen].reshape(shape)
    return Split(x, y, *test)


def _dirichlet(
    labels: np.ndarray, alpha: float, rng: np.random.Generator, clients: int
) -> list[np.ndarray]:
    """Return each client's rows, no row twice."""
    piles = [list(rng.permutation(np.flatnonzero(labels == c))) for c in range(CLASSES)]
    shares = []
    for _ in range(clients):
        proportions = rng.dirichlet(np.full(CLASSES, alpha))
        counts = rng.multinomial(EXAMPLES, proportions)
        own = [piles[c].pop() for c in range(CLASSES) for _ in range(counts[c])]
        shares.append(rng.permutation(np.array(own)))
    return shares
