"""Breast cancer diagnosis from 30 measurements of cell nuclei: hospitals as nodes.

The features are standardised with constants of the whole public data set, written down
below. No hospital could compute them alone: a real federation has to agree on such
constants beforehand, or standardise at each node as the task ``tabular`` does.
"""

from __future__ import annotations

import functools

import numpy as np
from torch import nn

from ..job import Job
from ..task import Node
from .torch_task import Examples, TorchTask, own_examples, seeded_model

__all__ = ["BreastCancer"]

# Mean and standard deviation of each feature over all 569 rows, to four digits, in the
# order and units of scikit-learn's load_breast_cancer: ten means, ten standard errors,
# ten worst values; a line for each ten, so
# fmt: off
_MEAN = np.array([
    14.13, 19.29, 91.97, 654.9, 0.09636, 0.1043, 0.0888, 0.04892, 0.1812, 0.0628,
    0.4052, 1.217, 2.866, 40.34, 0.007041, 0.02548, 0.03189, 0.0118, 0.02054, 0.003795,
    16.27, 25.68, 107.3, 880.6, 0.1324, 0.2543, 0.2722, 0.1146, 0.2901, 0.08395,
])
_STD = np.array([
    3.521, 4.297, 24.28, 351.6, 0.01405, 0.05277, 0.07965, 0.03877, 0.02739, 0.007054,
    0.2771, 0.5512, 2.02, 45.45, 0.003, 0.01789, 0.03016, 0.006165, 0.008259, 0.002644,
    4.829, 6.141, 33.57, 568.9, 0.02281, 0.1572, 0.2084, 0.06567, 0.06181, 0.01805,
])
# fmt: on


class BreastCancer(TorchTask):
    """569 tumours, malignant (0) or benign (1), by logistic regression.

    A fixed 20 % of the tumours, with the same mix of classes, is the server's test set.
    The hospitals share the other 80 %; each holds out a fifth of its own share.
    """

    def model(self, job: Job, seed: int) -> nn.Module:
        """Return a logistic regression (62 weights)."""
        return seeded_model(lambda: nn.Linear(len(_MEAN), 2), seed)

    def train_data(self, job: Job, node: Node) -> Examples:
        """Return the node's share without what it holds out."""
        return own_examples(_load()[0], job, node)[0]

    def test_data(self, job: Job, node: Node | None) -> Examples | None:
        """Return what ``node`` holds out; the public test set for the server."""
        train, test = _load()
        return own_examples(train, job, node)[1] if node else test


@functools.cache
def _load() -> tuple[Examples, Examples]:
    """Return the part for the hospitals and the public test set."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    x, y = load_breast_cancer(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        (x - _MEAN) / _STD, y, test_size=0.2, stratify=y, random_state=0
    )
    return Examples.of(train_x, train_y), Examples.of(test_x, test_y)
