"""Fashion-MNIST in 14 x 14 pixels, dealt to hundreds of clients of unequal size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._robust_data import CLASSES, POOL, _images
from truststram.rng import derive
from truststram.tasks.fashion_mnist import _MEAN, _STD

__all__ = ["ALPHA", "FEWEST", "MOST", "Clients", "deal", "load"]

FEWEST, MOST, ALPHA = 30, 120, 0.5
# Of the training images, for development: no client holds them.
VALIDATION = slice(50_000, 60_000)

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Clients:
    """Who holds which examples.

    Attributes
    ----------
    rows : array of int64, shape (clients, 120)
        Places of the examples; of a client with n, the first n count.
    sizes : array of int64, shape (clients,)
    """

    rows: Rows
    sizes: Rows

    @property
    def held(self) -> Rows:
        """The examples that anybody holds, each once."""
        columns = np.arange(self.rows.shape[1])
        return np.unique(self.rows[columns < self.sizes[:, None]])

    def batches(self, cohort: Rows, examples: int, rng: np.random.Generator) -> Rows:
        """Return the rows that each client of a cohort trains on.

        Shuffled; who holds fewer than ``examples`` goes through them again in the same
        order. Shape (cohort, examples).
        """
        rows, sizes = self.rows[cohort], self.sizes[cohort, None]
        keys = rng.random(rows.shape)
        keys[np.arange(rows.shape[1]) >= sizes] = np.inf
        order = np.argsort(keys, axis=1)
        turns: Rows = np.arange(examples) % sizes
        shuffled = np.take_along_axis(rows, order, axis=1)
        return np.take_along_axis(shuffled, turns, axis=1)


def deal(labels: Rows, clients: int, rng: np.random.Generator) -> Clients:
    """Deal out examples.

    Parameters
    ----------
    labels : array of shape (n,)
    clients : int
        Each gets 30 to 120 examples, uniformly, of classes in proportions from
        Dir(0.5). Nobody gets an example twice before all of its class are dealt; then
        the class is shuffled and dealt again.
    """
    sizes = rng.integers(FEWEST, MOST + 1, clients)
    proportions = rng.dirichlet(np.full(CLASSES, ALPHA), clients)
    counts = rng.multinomial(sizes, proportions)  # (clients, classes)
    rows = np.zeros((clients, MOST), np.int64)
    # Where each client's examples of a class begin in its row.
    begin = np.cumsum(counts, axis=1) - counts
    for c in range(CLASSES):
        pile = np.flatnonzero(labels == c)
        rounds = -(-int(counts[:, c].sum()) // len(pile))
        dealt = np.concatenate([rng.permutation(pile) for _ in range(rounds)] or [pile])
        owner = np.repeat(np.arange(clients), counts[:, c])
        first = np.cumsum(counts[:, c]) - counts[:, c]
        place = np.arange(len(owner)) - first[owner] + begin[owner, c]
        rows[owner, place] = dealt[: len(owner)]
    return Clients(rows, sizes)


@dataclass(frozen=True)
class Images:
    """Standardised images (n, 196) and labels (n,).

    The clients' pool, those tested on, and images of nobody that come from where the
    pool comes from: test images are a little harder, members or not.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    other_x: Tensor
    other_y: Tensor


@lru_cache(maxsize=1)
def load(validation: bool) -> Images:
    """Return the images; ``validation``: tested on training images 50,000 to 59,999."""
    (train_x, train_y), (test_x, test_y) = _images()
    x, y = (train_x - _MEAN) / _STD, train_y
    others = x[VALIDATION], y[VALIDATION]
    tested = others if validation else ((test_x - _MEAN) / _STD, test_y)
    return Images(x[POOL], y[POOL], *tested, *others)


def clients_of(seed: int, count: int, labels: Tensor, who: str) -> Clients:
    """Return the clients of a seed; ``who`` tells federation and outsiders apart."""
    return deal(labels.numpy(), count, derive(seed, "privacy-accuracy", who, count))
