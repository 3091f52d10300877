"""Who takes part in a round under central privacy: drawn in secret, from a CSPRNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from truststram.errors import RunError

from ..accounting.sampling import Sampling
from .csprng import Source

__all__ = ["check_population", "drawn", "subset"]

Node = TypeVar("Node")


def drawn(nodes: Sequence[Node], sampling: Sampling, source: Source) -> list[Node]:
    """Return the nodes of a round, in order, exactly as the sampling says.

    Everyone; each independently with probability q; or every set of m equally likely.
    """
    if sampling.kind == "none":
        return list(nodes)
    if sampling.kind == "fixed":
        size = round(sampling.rate * sampling.population)
        return [nodes[i] for i in subset(len(nodes), size, source)]
    chosen = source.uniforms(len(nodes)) <= sampling.rate
    return [node for node, kept in zip(nodes, chosen.tolist(), strict=True) if kept]


def subset(n: int, m: int, source: Source) -> list[int]:
    """Return m of n places, in order: every set of m is equally likely.

    Those of the m smallest of n random words. Words that are all different have every
    order equally often; with a repetition all are drawn again.
    """
    words = source.words(n)
    while len(np.unique(words)) < n:
        words = source.words(n)
    chosen: list[int] = np.sort(np.argsort(words)[:m]).tolist()
    return chosen


def check_population(begun: int, now: int) -> None:
    """Refuse to draw a sample of a fixed size from another number of nodes.

    Raises
    ------
    RunError
        If the number is not the one that the run began with.
    """
    if now != begun:
        raise RunError(
            f"{now} nodes are connected where the run began with {begun}: the "
            "guarantee of privacy.sampling = fixed is for a number of nodes that does "
            "not change. Connect them all and resume the run, or use "
            "privacy.sampling = poisson."
        )
