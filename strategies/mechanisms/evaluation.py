"""Accuracies that nodes tell of a model on their own data: charged releases.

Federated evaluation asks every node for one number in [0, 1]. All of a node's data may
move it by 1, whatever their number, so that no count is needed. Staircase noise is the
least for a number and a pure epsilon (Geng and Viswanath, "The optimal noise-adding
mechanism in differential privacy", IEEE Trans. Inf. Theory 62, 2016): at epsilon 8 its
standard deviation is 0.058, where Laplace noise has 0.177 and Gaussian noise 0.6. So
it is worth while to ask seldom: of E evaluations each has an E-th of
``privacy.evaluate-epsilon``.

With local trust each node adds the noise, and the server sees that number alone. With
central trust the server sees the accuracies, and adds the noise once, to their sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from truststram.errors import ConfigError
from truststram.job import Job

from ..accounting.calibrate import noise_std
from ..accounting.events import Release
from .csprng import Source
from .noise import delta_slack, draw, lattice_for

__all__ = [
    "ACCURACY",
    "MIDDLE",
    "accuracy_of",
    "accuracy_release",
    "noisy_mean_accuracy",
    "noisy_sum",
    "told_error",
]

# The metric that is told.
ACCURACY = "accuracy"
# What is taken off an accuracy, so that it can be clipped around 0.
MIDDLE = 0.5


def accuracy_release(job: Job) -> Release | None:
    """Return what an evaluation is charged as; None if there is none.

    Raises
    ------
    ConfigError
        If evaluation has the whole budget.
    """
    keys = job.privacy
    times = keys.evaluations(job.train.rounds)
    if not times:
        return None
    if keys.training_epsilon <= 0:
        raise ConfigError(
            f"privacy.evaluate-epsilon = {keys.evaluate_epsilon:g}: expected < "
            f"privacy.epsilon = {keys.epsilon:g}, of which it is a part."
        )
    each = keys.evaluate_epsilon / times
    bare = Release("staircase", epsilon0=each, relation=keys.neighbours)
    slack = delta_slack(bare, 1) * (1 + math.exp(each))
    return Release(
        "staircase", epsilon0=each, relation=keys.neighbours, delta_slack=slack
    )


def accuracy_of(metrics: Mapping[str, object]) -> float | None:
    """Return the accuracy among metrics, in [0, 1]; None if there is no number."""
    value = metrics.get(ACCURACY)
    if not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(min(max(value, 0), 1))  # an integer may be too large for a float


def noisy_sum(
    values: Sequence[float], release: Release, source: Source, *, central: bool
) -> float:
    """Return the sum of accuracies less one half each, with noise.

    Less one half, a client more or less moves the sum of all by a half only, and one
    replaced by 1. A node's own number moves by up to 1, whatever the relation.

    Parameters
    ----------
    values : sequence of float
        Clipped to [0, 1].
    release : Release
        From :func:`accuracy_release`.

    Returns
    -------
    float
        **Guarantee**: epsilon0 of the release for one value replaced (or, with its
        relation, added or removed), whatever the values. The sampler's finite bits are
        not accounted for.
    """
    on = lattice_for(release, _clip(release, central), 1)
    centred = np.clip(np.asarray(values, np.float64), 0, 1) - MIDDLE
    exact = np.trunc(centred / on.step).astype(np.int64).sum(keepdims=True)
    noisy = exact + draw(release, on.units, 1, source)
    # Not float32's seven digits: the sum of a thousand nodes has them.
    return float(noisy[0] * on.step)


def noisy_mean_accuracy(
    told: Iterable[Mapping[str, object]], release: Release, source: Source, nodes: int
) -> float:
    """Return the mean of nodes' accuracies with the server's noise.

    Parameters
    ----------
    told : iterable of mapping
        Metrics of the nodes that answered.
    nodes : int
        All that are registered: one that does not answer counts as one half.
    """
    values = [value for value in map(accuracy_of, told) if value is not None]
    return noisy_sum(values, release, source, central=True) / nodes + MIDDLE


def told_error(release: Release, nodes: int, *, central: bool) -> float:
    """Return the standard deviation of the noise in a mean accuracy of nodes."""
    one = noise_std(release, _clip(release, central))
    return one / (nodes if central else math.sqrt(nodes))


def _clip(release: Release, central: bool) -> float:
    """Return the clip: how far neighbours are apart, over the release's sensitivity."""
    return MIDDLE if central else 1 / release.sensitivity
