"""Which nodes of a round stand out: two detectors on one number of each node.

Both are the Hampel identifier (Davies and Gather, "The Identification of Multiple
Outliers", JASA 88, 1993, section 2) on a logarithmic scale, so that they ask "how many
times" instead of "by how much": a value stands out if it lies above the median by more
than ``max(log 3, c * 1.4826 * MAD)``. Median and MAD stay between honest values as long
as fewer than half of the values are an attacker's. A limit such as twice the 95th
percentile of the same round does not: attackers who are 5 % of the nodes decide it.

Differences from the source: the least width, because the MAD of nodes that all but
agree is tiny; one side only, because a short update does no harm and a loss that falls
faster than others' is learning; and for losses the node's own spread.

Mathematics (K nodes)
---------------------
Norms: ``x_j = log n_j`` over the nodes whose update has a positive norm; node j stands
out if ``x_j > median(x) + max(log 3, c * 1.4826 * MAD(x))``.

Losses: ``y_j = max(log(l_j / median l), log 0.01)`` is a node's loss relative to its
cohort, ``x_j = y_j - mean(y_j of its last three rounds)`` how that changed, and ``m``
the median of x. Node j stands out if ``x_j - m > max(log 3, c * 1.4826 * MAD(x), c *
1.4826 * MAD(y_j of its last ten rounds))``; ``y_j - m`` is what is remembered. So a
loss that falls for everybody, as in early rounds, is no change, also for a node that
was not asked in every round; and another cohort, or liars who push the median loss
about, shift everybody alike. The node's own spread counts because nodes with few
examples have restless losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["HISTORY", "changes", "norm_limit", "relative_losses"]

Doubles = NDArray[np.float64]

# Robust standard deviations; a normal variable is beyond 4.5 once in 300,000 times.
C = 4.5
# A median absolute deviation of a normal variable times this is its standard deviation.
MAD_TO_SIGMA = 1.4826
LEAST = math.log(3)
SMALLEST_RELATIVE = math.log(0.01)
# Two values always agree with their median: nobody could stand out.
FEWEST = 3
# Rounds whose mean is a node's usual loss, and rounds that tell how restless it is.
USUAL = 3
HISTORY = 10


def norm_limit(norms: Doubles) -> float:
    """Return the norm above which an update is conspicuously long.

    Parameters
    ----------
    norms : array of shape (K,)
        Finite; zeros have no logarithm and are left out.

    Returns
    -------
    float
        Infinite for fewer than three positive norms.
    """
    logs = np.log(norms[norms > 0])
    if len(logs) < FEWEST:
        return math.inf
    limit = float(np.median(logs)) + max(LEAST, C * _spread(logs))
    with np.errstate(over="ignore"):  # above all floats: nobody is too long
        return float(np.exp(limit))


def relative_losses(losses: Doubles) -> Doubles | None:
    """Return the log of each loss relative to the cohort's, shape (K,).

    Parameters
    ----------
    losses : array of shape (K,)
        Finite and not negative.

    Returns
    -------
    array or None
        None if there is no loss, or the median one is zero: there is nothing to compare
        with.
    """
    middle = float(np.median(losses)) if len(losses) else 0.0
    if middle == 0:
        return None
    with np.errstate(divide="ignore"):  # log 0: the smallest relative loss
        logs = np.log(losses) - math.log(middle)
    relative: Doubles = np.maximum(logs, SMALLEST_RELATIVE)
    return relative


def changes(
    relative: Doubles, histories: Sequence[Sequence[float]]
) -> tuple[Doubles, Doubles, float]:
    """Return how each node's loss changed, and above which change it stands out.

    Parameters
    ----------
    relative : array of shape (K,)
        From :func:`relative_losses`.
    histories : K sequences of float
        What is remembered of a node's last rounds, oldest first.

    Returns
    -------
    changed : array of shape (K,)
        NaN for a node with fewer than three rounds behind it.
    limits : array of shape (K,)
        Infinite if fewer than three changes are known.
    shift : float
        What the median node changed by: ``relative - shift`` is to be remembered.
    """
    usual = [
        float(np.mean(past[-USUAL:])) if len(past) >= USUAL else math.nan
        for past in histories
    ]
    changed = relative - np.array(usual)
    known = changed[~np.isnan(changed)]
    if len(known) < FEWEST:
        return changed, np.full(len(changed), math.inf), 0.0
    shift, least = float(np.median(known)), max(LEAST, C * _spread(known))
    own = [C * _spread(np.array(past)) if len(past) else 0.0 for past in histories]
    return changed, shift + np.maximum(least, own), shift


def _spread(values: Doubles) -> float:
    """Return the robust standard deviation."""
    return MAD_TO_SIGMA * float(np.median(np.abs(values - np.median(values))))
