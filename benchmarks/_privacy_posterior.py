"""Reading what silos released by the public density of their noise.

Post-processing: it sees nothing but what was released, and costs no budget.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from strategies.accounting.events import Release
from truststram.rng import derive

__all__ = ["likeliest"]

Matrix = NDArray[np.float64]

# Directions that a posterior is summed over.
DIRECTIONS = 20_000


def likeliest(noisy: Matrix, release: Release) -> Matrix:
    """Return the posterior mean of what silos released, (d,); it costs no budget.

    Reads noisy vectors (silos, d) by what is public: the density of the noise, and that
    weights have length 1. As if all silos had released the same weights, of which every
    direction is as likely beforehand; only the direction of the result has a meaning.

    With Gaussian noise this is the direction of the average. Staircase noise has edges,
    and is therefore read much better than its variance tells.
    """
    directions = _directions(noisy.shape[1])
    logs = np.zeros(len(directions))
    for vector in noisy:
        if release.mechanism == "laplace":
            scale = release.scale * noisy.shape[1] ** 0.5
            logs -= np.abs(vector - directions).sum(axis=1) / scale
            continue
        squares = vector @ vector + 1 - 2 * (directions @ vector)
        logs += _log_density(np.sqrt(np.maximum(squares, 0)), release)
    result: Matrix = np.exp(logs - logs.max()) @ directions
    return result


def _log_density(radii: Matrix, release: Release) -> Matrix:
    """Return the logarithm of the noise's density at distances, up to a constant."""
    if release.mechanism == "gaussian":
        return -0.5 * (radii / release.scale) ** 2
    steps = radii / release.sensitivity
    if release.mechanism == "staircase-ball":
        steps = np.floor(steps - release.gamma) + 1
    return -release.epsilon0 * steps


@cache
def _directions(d: int) -> Matrix:
    """Return directions in d dimensions, uniform."""
    rng = derive(0, "staircase", "directions", d)
    found = rng.standard_normal((DIRECTIONS, d))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))
