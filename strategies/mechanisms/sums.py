"""The noisy sum of clipped updates, and a clip that follows a quantile.

Everything is added as integers on the lattice (:mod:`.lattice`). Whatever a reply
holds, it moves the sum by at most a clip; one that cannot be read counts as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import Message

from truststram.errors import ProtocolError
from truststram.records import Float32

from ..accounting.events import Release
from ..update import Model, read_delta
from .clip import clip
from .csprng import Source
from .lattice import Integers, Lattice, from_lattice
from .noise import draw, lattice_for, support

__all__ = ["Drop", "followed", "noisy_mean"]

# Learning rate of the clip, in logarithms (Andrew et al., section 3).
CLIP_RATE = 0.2
# A count of unclipped updates is +-1/2 for each; with a count on a lattice of 2**-20.
HALF = 0.5
# Told of a reply that counts as zero, and why.
Drop = Callable[[Message, str], None]


def noisy_mean(
    replies: Sequence[Message],
    model: Model,
    release: Release,
    bound: float,
    divisor: float,
    out: Float32,
    source: Source,
    drop: Drop,
) -> list[bool]:
    """Write ``(sum_j clip(U_j) + noise) / divisor`` to ``out``.

    Parameters
    ----------
    replies : sequence of Message
    model : Model
        What the updates are relative to.
    release : Release
        The noise.
    bound : float
        The clip, in the release's norm.
    divisor : float
    out : float32 array of shape (d,)
    source : Source
    drop : callable

    Returns
    -------
    list of bool
        Which updates were not longer than the clip: secret.
    """
    d = len(out)
    on = lattice_for(release, bound, d)
    on.check_sum(len(replies), support(release, on.units, d))
    total = draw(release, on.units, d, source)
    short = [_add(reply, model, on, total, drop) for reply in replies]
    out[:] = from_lattice(total, on, divisor)
    return short


def _add(
    reply: Message, model: Model, on: Lattice, total: Integers, drop: Drop
) -> bool:
    """Add one clipped update; return whether it was short enough as it was."""
    try:
        delta = np.ascontiguousarray(read_delta(reply.content, model))
    except ProtocolError as error:
        drop(reply, error.code)
        return True
    clipped = clip(delta, on)
    if not clipped.finite:
        drop(reply, "not-finite")
    total += clipped.integers
    return clipped.finite and clipped.norm <= on.clip


def followed(
    bound: float,
    quantile: float,
    short: Sequence[bool],
    count: Release,
    cohort: float,
    source: Source,
) -> float:
    """Return the next clip, from a noisy count of updates that were short enough.

    Parameters
    ----------
    bound : float
        The clip of this round.
    quantile : float
        Part of the updates that should be short enough.
    short : sequence of bool
        From :func:`noisy_mean`.
    count : Release
        What the count is charged as.
    cohort : float
        The expected number of updates.
    source : Source
    """
    on = lattice_for(count, HALF, 1)
    exact = np.array([sum(HALF if s else -HALF for s in short) / on.step], np.int64)
    noisy = float(from_lattice(exact + draw(count, on.units, 1, source), on)[0])
    step = CLIP_RATE * (noisy / cohort + HALF - quantile)
    return bound * math.exp(-min(max(step, -CLIP_RATE), CLIP_RATE))
