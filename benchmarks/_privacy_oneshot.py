"""One release by each silo, under every mechanism; what a server makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks._privacy_posterior import likeliest
from benchmarks._privacy_silos import accuracy, splits
from strategies.accounting.calibrate import calibrate
from strategies.accounting.events import Release
from strategies.accounting.ledger import Ledger
from strategies.mechanisms.clip import clip
from strategies.mechanisms.csprng import Source
from strategies.mechanisms.lattice import Lattice, from_lattice
from strategies.mechanisms.noise import draw, lattice_for
from truststram.rng import derive_seed

__all__ = ["EPSILON", "MECHANISMS", "Case", "Trial", "errors", "released_by"]

EPSILON, DELTA = 8.0, 1e-5
MECHANISMS = ("gaussian", "laplace", "laplace-ball", "staircase-ball")

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]


@cache
def released_by(mechanism: str, dimension: int, epsilon: float = EPSILON) -> Release:
    """Return the release of least noise that one budget allows once."""
    release = calibrate(
        mechanism, epsilon, DELTA, relation="replace", dimension=dimension
    )
    ledger = Ledger(epsilon, DELTA, relation="replace", trust="local")
    ledger.charge(release)
    assert ledger.spent() <= epsilon
    return release


def source_of(seed: int, *labels: str | int) -> Source:
    """Return the shipped source under a known key, so that results can be repeated."""
    return Source.insecure(derive_seed(seed, "staircase", *labels))


def clipped(values: Vector, release: Release, bound: float) -> tuple[Integers, Lattice]:
    """Return vectors (n, d) of an L2 norm of at most ``bound`` as integers."""
    d = values.shape[1]
    wide = d**0.5 if release.norm == "l1" else 1.0
    on = lattice_for(release, bound * wide, d)
    rows = [clip(row, on).integers for row in values.astype(np.float32)]
    return np.array(rows), on


def errors(truth: Vector, mechanism: str, repeats: int, seed: int) -> Vector:
    """Return by how much a mean of noisy values in [0, 1] is off, shape (repeats,).

    Each of the values (n,) is released on its own, by its distance from the middle.
    """
    release, source = released_by(mechanism, 1), source_of(seed, len(truth), mechanism)
    exact, on = clipped(truth[:, None] - 0.5, release, 0.5)
    draws = repeats * len(truth)
    noise = np.array([draw(release, on.units, 1, source)[0] for _ in range(draws)])
    sums = exact.sum() + noise.reshape(repeats, -1).sum(axis=1)
    means = from_lattice(sums, on, len(truth)).astype(np.float64) + 0.5
    found: Vector = means - truth.mean()
    return found


@dataclass(frozen=True)
class Case:
    """A one-shot regression.

    Attributes
    ----------
    features, silos : int
    trusted : bool
        The server sees the sum and adds noise once.
    """

    features: int
    silos: int
    trusted: bool = False

    @property
    def name(self) -> str:
        """For people."""
        who = ", trusted server" if self.trusted else ""
        return f"regression, {self.features} features, {self.silos} silos{who}"


class Trial:
    """Accuracies in percent of one case, with every mechanism on the same divisions.

    Parameters
    ----------
    case : Case
    count, draws : int
        Divisions of the patients, and how often all silos release in each.
    seed : int
    posterior : bool
        Read the releases by :func:`~benchmarks._privacy_silos.likeliest` too.

    Attributes
    ----------
    plain : float
        Mean without noise.
    averaged, posterior : dict
        By mechanism, shape (count,): means over the draws with the average of what was
        released, and with the posterior mean (empty without ``posterior``).
    """

    def __init__(
        self, case: Case, count: int, draws: int, seed: int, posterior: bool = False
    ) -> None:
        plain = []
        averaged: dict[str, list[float]] = {m: [] for m in MECHANISMS}
        read: dict[str, list[float]] = {m: [] for m in MECHANISMS}
        sources = {m: source_of(seed, case.name, m) for m in MECHANISMS}
        for split in splits(case.features, case.silos, count, seed):
            plain.append(accuracy(split.weights.sum(axis=0), split))
            for mechanism, source in sources.items():
                release = released_by(mechanism, case.features + 1)
                made = _released(case, split.weights, release, source, draws)
                sums = [accuracy(vectors.sum(axis=0), split) for vectors in made]
                averaged[mechanism].append(float(np.mean(sums)))
                if posterior:
                    models = [likeliest(vectors, release) for vectors in made]
                    found = [accuracy(model, split) for model in models]
                    read[mechanism].append(float(np.mean(found)))
        self.note = (
            f"test accuracy, {count} divisions of the patients x {draws} releases, "
            f"breast cancer, weights of length 1 with a bias; without noise "
            f"{100 * np.mean(plain):.1f}"
        )
        self.averaged = {m: 100 * np.array(x) for m, x in averaged.items()}
        self.posterior = {m: 100 * np.array(x) for m, x in read.items()}


def _released(
    case: Case, weights: Vector, release: Release, source: Source, draws: int
) -> list[Vector]:
    """Return what is released, ``draws`` times: each silo's vector or their sum."""
    exact, on = clipped(weights, release, 1.0)
    if case.trusted:
        exact = exact.sum(axis=0, keepdims=True)
    found = []
    for _ in range(draws):
        noisy = [row + draw(release, on.units, len(row), source) for row in exact]
        rows = [from_lattice(row, on).astype(np.float64) for row in noisy]
        found.append(np.array(rows))
    return found
