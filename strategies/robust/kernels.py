"""Order statistics and distances of many long vectors, block by block.

Rows are K float32 vectors of shape (d,), or a :class:`Mixture`; see :mod:`.rows`. A row
is read once, block by block; order statistics come from :mod:`.sorting`, distances from
matrix products. BLAS runs on one thread: its rounding depends on the number of threads,
and a model must not depend on the number of cores.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike, NDArray

from truststram.vectors import one_blas_thread

from .rows import (
    Doubles,
    Floats,
    Mixture,
    Rows,
    block_parts,
    block_width,
    blocks,
    combination,
    length,
    take,
)
from .sorting import Sorter

__all__ = [
    "Doubles",
    "Floats",
    "Mixture",
    "Rows",
    "blocks",
    "centred_gram",
    "combination",
    "gram",
    "mean_around_median",
    "median",
    "middle_sorter",
    "middle_sum",
    "mixed_trimmed_mean",
    "squared_distances",
    "trimmed_mean",
]

# A distance below this part of the squares it is a difference of is computed anew.
CANCELLED = 1 / 32
# Sums of squares below this may miss terms smaller than float32's smallest number.
TINY = 1e-20
# The last sorter of each thread: the next round most likely needs the same one.
_LAST = threading.local()


def median(rows: Rows) -> Floats:
    """Return the coordinate-wise median, shape (d,).

    For an even number of rows it is the mean of the two in the middle, as NumPy's.
    """
    low, high = (len(rows) - 1) // 2, len(rows) // 2 + 1
    return _middle(rows, low, high)


def trimmed_mean(rows: Rows, f: int) -> Floats:
    """Return the mean without the ``f`` smallest and largest per coordinate, (d,)."""
    return _middle(rows, f, len(rows) - f)


def mixed_trimmed_mean(rows: Rows, mixing: Doubles, f: int) -> Floats:
    """Return the trimmed mean of the rows of ``mixing @ rows``, shape (d,).

    Parameters
    ----------
    rows : K arrays of shape (d,)
    mixing : array of shape (M, K)
    f : int
        ``0 <= 2 f < M``.
    """
    return trimmed_mean(Mixture(rows, mixing), f)


def _middle(rows: Rows, low: int, high: int) -> Floats:
    """Return the mean of the sorted rows ``low`` to ``high - 1``."""
    out = np.empty(length(rows), np.float32)
    sorter = Sorter(len(rows), low, high, block_width(rows), summed=True)
    for block, parts in block_parts(rows):
        _add(sorter(parts), out[block])
    out *= np.float32(1 / (high - low))
    return out


def middle_sorter(k: int, low: int, high: int, width: int) -> Sorter:
    """Return this thread's sorter for sums of the sorted rows ``low`` to ``high - 1``.

    For loops over blocks: fill ``sorter.room(B)`` with the rows of a block, then call
    :func:`middle_sum`.

    Parameters
    ----------
    k, low, high : int
        ``0 <= low < high <= k`` rows.
    width : int
        Columns of the widest block.
    """
    sorter: Sorter | None = getattr(_LAST, "sorter", None)
    if sorter is None or not sorter.fits(k, low, high, width):
        sorter = _LAST.sorter = Sorter(k, low, high, width, summed=True)
    return sorter


def middle_sum(sorter: Sorter, out: Floats) -> None:
    """Sort the sorter's room; write the sum of the middle rows to ``out``, per column.

    Parameters
    ----------
    sorter : Sorter
        Of :func:`middle_sorter`, its room filled. What was in it is lost.
    out : array of shape (B,)
    """
    _add(sorter.sort(len(out)), out)


def mean_around_median(rows: Rows, count: int) -> Floats:
    """Return, per coordinate, the mean of the ``count`` values nearest to the median.

    Of two equally near values the smaller one. The nearest are neighbours in the sorted
    column: a window of ``count`` values moves up while what enters is nearer than what
    leaves.
    """
    k = len(rows)
    out = np.empty(length(rows), np.float32)
    sorter = Sorter(k, 0, k, block_width(rows))
    for block, parts in block_parts(rows):
        ranked, total = sorter(parts), out[block]
        middle = (ranked[(k - 1) // 2] + ranked[k // 2]) * np.float32(0.5)
        _add(ranked[:count], total)
        for lower, upper in zip(ranked, ranked[count:], strict=False):
            gain = upper - lower
            gain *= upper - middle < middle - lower
            total += gain
    out *= np.float32(1 / count)
    return out


def _add(rows: Rows, out: Floats) -> None:
    """Write the sum of the rows."""
    np.copyto(out, rows[0])
    for row in rows[1:]:
        np.add(out, row, out=out)


def gram(rows: Rows) -> Doubles:
    """Return all inner products ``x_i . x_j``, shape (K, K), accumulated in float64."""
    products = _products(rows, None, np.float32)
    if not np.isfinite(products).all():  # squares beyond float32
        products = _products(rows, None, np.float64)
    return products


def _products(rows: Rows, centre: Floats | None, dtype: DTypeLike) -> Doubles:
    """Return the inner products of ``x_i - centre``, (K, K)."""
    k = len(rows)
    products = np.zeros((k, k))
    work = np.empty((k, block_width(rows)), dtype)
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        for block, parts in block_parts(rows):
            part = work[:, : len(parts[0])]
            for target, x in zip(part, parts, strict=True):
                if centre is None:
                    target[:] = x
                else:
                    np.subtract(x, centre[block], out=target, dtype=dtype)
            products += part @ part.T
    return products


def centred_gram(rows: Rows) -> Doubles:
    """Return the inner products of the rows minus one central row, shape (K, K).

    Which row that is, is left open: distances from points in the rows' affine hull do
    not depend on it. Of a :class:`Mixture` whose weights have sum 1 it is one of the
    rows that are mixed.
    """
    if isinstance(rows, Mixture):
        return np.asarray(rows.mixing @ centred_gram(rows.rows) @ rows.mixing.T)
    return _centred(rows, _central(rows))


def _centred(rows: Rows, centre: int) -> Doubles:
    """Return the inner products of the rows minus row ``centre``."""
    products = _products(rows, rows[centre], np.float32)
    if not TINY < products.diagonal().max(initial=0) < np.inf:  # beyond float32
        products = _products(rows, rows[centre], np.float64)
    return products


def squared_distances(rows: Rows) -> Doubles:
    """Return all ``||x_i - x_j||^2``, shape (K, K), to a relative error below 1e-5.

    From inner products of the differences from one central row. Rows that lie much
    nearer to each other than to that row (``CANCELLED``) are done again on their own:
    close rows keep their digits whatever the others are.
    """
    if isinstance(rows, Mixture):
        return _mixed_distances(rows)
    distances = np.zeros((len(rows), len(rows)))
    groups = [np.arange(len(rows))] if length(rows) else []
    while groups:
        group = groups.pop()
        members = take(rows, group.tolist())
        centre = _central(members)
        products = _centred(members, centre)
        squares = products.diagonal()[:, None] + products.diagonal()
        found = np.maximum(squares - 2 * products, 0)
        np.fill_diagonal(found, 0)
        distances[np.ix_(group, group)] = found
        near = found < CANCELLED * squares
        np.fill_diagonal(near, False)
        near[centre] = near[:, centre] = False  # nothing was subtracted there
        groups += [group[part] for part in _connected(near)]
    return distances


def _mixed_distances(mixture: Mixture) -> Doubles:
    """Return ``-(w_a - w_b)^T D (w_a - w_b) / 2`` for the rows w of the mixing matrix.

    Which must have equal sums. D: the squared distances of what is mixed.
    """
    if mixture.distances is None:
        mixture.distances = squared_distances(mixture.rows)
    products = mixture.mixing @ mixture.distances @ mixture.mixing.T
    products = (products + products.T) / 2  # ties must not depend on rounding
    own = products.diagonal() / 2
    distances: Doubles = np.maximum(products - own[:, None] - own, 0)
    np.fill_diagonal(distances, 0)
    return distances


def _central(rows: Rows) -> int:
    """Return a row that is near to most others, judged by some coordinates."""
    step = max(1, length(rows) // 1024)
    sample = np.stack([x[::step] for x in rows]).astype(np.float64)
    products = sample @ sample.T
    own = products.diagonal()
    return int(np.argmin(np.median(own[:, None] + own - 2 * products, axis=1)))


def _connected(near: NDArray[np.bool_]) -> Iterator[NDArray[np.intp]]:
    """Yield the connected parts of a graph that have at least two nodes."""
    left = set(np.flatnonzero(near.any(axis=1)).tolist())
    while left:
        part = np.zeros(len(near), bool)
        part[left.pop()] = True
        while (grown := part | near[part].any(axis=0)).sum() > part.sum():
            part = grown
        left -= set(np.flatnonzero(part).tolist())
        yield np.flatnonzero(part)
