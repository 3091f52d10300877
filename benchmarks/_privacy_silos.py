"""Silos with patients' records, for ``benchmarks.staircase``.

scikit-learn's breast cancer data: 569 tumours, benign or malignant. The features are
standardised with public constants of the whole data set, which a real federation has to
agree on beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from truststram.rng import derive
from truststram.tasks.breast_cancer import _MEAN, _STD

__all__ = ["Split", "accuracies_at", "accuracy", "splits"]

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

PART_TESTED = 0.3
# Inverse strength of the local regularisation.
C = 0.3
# Patients at a silo that evaluates.
EVALUATED = 50


@dataclass(frozen=True)
class Split:
    """One random division of the patients.

    Attributes
    ----------
    weights : array of shape (silos, d)
        Of each silo's own logistic regression, the bias last, of length 1.
    x, y : arrays of shapes (n, d) and (n,)
        Test patients with a constant 1 as their last feature; classes 0 and 1.
    """

    weights: Matrix
    x: Matrix
    y: Labels


@cache
def _patients() -> tuple[Matrix, Labels]:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - _MEAN) / _STD
    return np.column_stack([x, np.ones(len(x))]), y


def splits(features: int, silos: int, count: int, seed: int) -> Iterator[Split]:
    """Yield divisions of the patients with the first ``features`` and a bias."""
    x, y = _patients()
    x = x[:, [*range(features), -1]]
    tested = round(PART_TESTED * len(y))
    for number in range(count):
        order = derive(seed, "staircase", "split", number).permutation(len(y))
        test, shares = order[:tested], np.array_split(order[tested:], silos)
        weights = np.array([_fitted(x[rows], y[rows]) for rows in shares])
        yield Split(weights, x[test], y[test])


def _fitted(x: Matrix, y: Labels) -> Matrix:
    """Return weights and bias of a logistic regression, of length 1."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(y)) < 2:  # nothing to tell apart
        always: Matrix = np.eye(x.shape[1])[-1] * (2 * float(y[0]) - 1)
        return always
    model = LogisticRegression(C=C, solver="newton-cholesky").fit(x[:, :-1], y)
    weights = np.append(model.coef_[0], model.intercept_)
    return np.asarray(weights / np.linalg.norm(weights))


def accuracy(weights: Matrix, split: Split) -> float:
    """Return the part of the test patients that weights (d,) get right."""
    return float(np.mean((split.x @ weights > 0) == split.y))


def accuracies_at(silos: int, seed: int) -> Matrix:
    """Return one model's accuracy on the patients of each silo, shape (silos,).

    Half of the patients trained it; each silo has 50 of the other half, drawn with
    replacement, so that there can be any number of silos.
    """
    x, y = _patients()
    rng = derive(seed, "staircase", "evaluation")
    order = rng.permutation(len(y))
    weights = _fitted(x[order[::2]], y[order[::2]])
    rows = rng.choice(order[1::2], (silos, EVALUATED))
    found: Matrix = np.mean((x[rows] @ weights > 0) == y[rows], axis=1)
    return found
