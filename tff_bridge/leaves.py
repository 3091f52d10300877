"""A plan's round as an ordinary round: its leaves as an update, and back.

A TFF computation exchanges flat lists of arrays ("leaves"). Our layers (robust rules,
privacy, codecs, secure sums) know one float32 update per node, its number of examples
and a few metrics. This module translates, so that every layer works on plans.

Mathematics
-----------
In silo k, ``work`` gives ``w_k g_k`` (an array for each trained parameter; g_k is the
global model minus the silo's, a direction of ascent as gradients are, and the gradient
itself in FedSGD), the weight ``w_k`` (a scalar) and sums ``s_k`` (unfinished metrics,
counts of clipped values). TFF adds them up over silos and gives the sums to ``report``
and ``update``. Here a silo sends ``d_k = -(w_k g_k) / w_k``, the number of examples
``n_k = w_k / c`` and the metrics ``s_k / w_k``, where c is how often an example is
counted: the plan's local epochs, or 1 if all silos weigh the same. The layers return
their aggregate ``d``, ``s`` and ``n = sum_k n_k``, and the server restores ``w = c n``,
``-w d`` and ``w s``. With the weighted mean these are TFF's own sums, to float32
rounding; with any other aggregate (a robust rule, a noisy mean), TFF's server step is
applied to that one instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ConfigError
from truststram.records import Float32

from .manifest import Leaf

__all__ = ["Leaves", "Reply", "WorkLayout", "nbytes", "size"]

Leaves = list[NDArray[np.generic]]

# Metrics of a reply that are a plan's sums are called by their leaf: "tff-5".
METRIC = "tff-"


def size(leaf: Leaf) -> int:
    """Return the number of elements of a leaf of fixed shape."""
    return math.prod(n for n in leaf.shape if n is not None)


def nbytes(leaf: Leaf) -> int:
    """Return the number of bytes of a leaf of fixed shape."""
    return size(leaf) * np.dtype(leaf.dtype).itemsize


@dataclass(frozen=True)
class Reply:
    """What a silo sends: update (d,), number of examples, metrics for each example."""

    delta: Float32
    examples: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class WorkLayout:
    """What the result of a plan's ``work`` means.

    Parameters
    ----------
    leaves : tuple of Leaf
        In the order of the result.
    update : tuple of int
        The leaves that make the update, in the model's order: float32. Where silos send
        a second vector (:mod:`.two_vectors`), its leaves follow, in the same order.
    weights : tuple of int
        The weight's leaves: one of each vector, which must have the same value.
    sums : tuple of int
        Leaves that are only added up: metrics and counts.
    counted : int
        How often an example counts in the weight, >= 1.
    """

    leaves: tuple[Leaf, ...]
    update: tuple[int, ...]
    weights: tuple[int, ...]
    sums: tuple[int, ...]
    counted: int = 1

    @cached_property
    def places(self) -> dict[int, slice]:
        """Where each leaf of the update is in the flat vector."""
        ends = list(accumulate(size(self.leaves[i]) for i in self.update))
        starts = [0, *ends[:-1]]
        return {i: slice(*x) for i, *x in zip(self.update, starts, ends, strict=True)}

    @cached_property
    def size(self) -> int:
        """Length of the update."""
        return sum(size(self.leaves[i]) for i in self.update)

    def reply(self, leaves: Sequence[NDArray[np.generic]]) -> Reply:
        """Return what a silo sends instead of the leaves of its ``work``.

        Raises
        ------
        ConfigError
            If the weight is not a whole number of examples: TFF gives weight 0 to a
            silo whose training diverged. If a second vector has another weight, which
            the server would have to believe.
        """
        *others, weight = (float(leaves[i]) for i in self.weights)
        examples = weight / self.counted
        if not (math.isfinite(examples) and examples >= 1 and examples.is_integer()):
            raise ConfigError(
                f"local training of the plan ended with weight {weight:g}, which is no "
                "number of examples: it diverged. Use a smaller learning rate."
            )
        if any(other != weight for other in others):
            raise ConfigError(
                "the plan weighs a silo's gradient otherwise than its update, as no "
                "plan of mime-lite does. Compile it again."
            )
        delta = np.empty(self.size, np.float32)
        for i, place in self.places.items():
            np.divide(leaves[i].reshape(-1), np.float32(-weight), out=delta[place])
        metrics: dict[str, float] = {}
        for i in self.sums:
            values = leaves[i].astype(np.float64).reshape(-1) / weight
            metrics |= zip(self._keys(i), values.tolist(), strict=True)
        return Reply(delta, int(examples), metrics)

    def sums_of(
        self, delta: Float32, examples: float, metrics: Mapping[str, object]
    ) -> Leaves:
        """Return the sums that ``report`` takes, from what the layers made of replies.

        Parameters
        ----------
        delta : float32 array of shape (size,)
        examples : float
            Examples that the update stands for, > 0.
        metrics : mapping
            Sums that are not there (privacy withholds them) are taken as zero.
        """
        weight = examples * self.counted
        sums: Leaves = [_zeros(leaf) for leaf in self.leaves]
        for i, place in self.places.items():
            part = delta[place].reshape(sums[i].shape)
            sums[i] = part * np.float32(-weight)
        for i in self.weights:
            sums[i] = np.asarray(weight, self.leaves[i].dtype)
        for i in self.sums:
            found = [metrics.get(key, 0.0) for key in self._keys(i)]
            sums[i] = _cast(np.array(found, np.float64) * weight, self.leaves[i])
        return sums

    def withheld(self, metrics: Mapping[str, object]) -> bool:
        """Return whether the sums of a round did not reach the server."""
        return any(key not in metrics for i in self.sums for key in self._keys(i))

    def _keys(self, i: int) -> list[str]:
        """Return the names of the metrics that are leaf ``i``, one an element."""
        leaf = self.leaves[i]
        if leaf.shape == ():
            return [f"{METRIC}{i}"]
        return [f"{METRIC}{i}-{j}" for j in range(size(leaf))]


def _zeros(leaf: Leaf) -> NDArray[np.generic]:
    return np.zeros([n or 0 for n in leaf.shape], leaf.dtype)


def _cast(values: NDArray[np.float64], leaf: Leaf) -> NDArray[np.generic]:
    """Return ``values`` as ``leaf`` has them; counts are rounded, not cut off."""
    dtype = np.dtype(leaf.dtype)
    if dtype.kind in "iu":
        values = np.rint(values)
    return values.astype(dtype).reshape(_zeros(leaf).shape)
