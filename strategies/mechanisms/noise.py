"""One door to the noise of every mechanism that the accounting knows.

A :class:`~..accounting.events.Release` says what is charged; :func:`draw` draws exactly
that, so that noise and account cannot differ. A release gives its scales in clips; the
lattice says how many steps a clip has.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..accounting.events import Release
from . import gaussian, laplace, staircase
from .csprng import Source
from .lattice import Lattice, Norm, lattice

__all__ = ["delta_slack", "draw", "epsilon_slack", "lattice_for", "std", "support"]

Integers = NDArray[np.int64]


def lattice_for(release: Release, clip: float, d: int) -> Lattice:
    """Return the lattice for a release of d values clipped to ``clip``.

    In the norm that the mechanism needs: L1 for ``laplace``, otherwise L2.
    """
    return lattice(clip, d, _norm(release))


def draw(release: Release, units: float, d: int, source: Source) -> Integers:
    """Return the noise of one release, to be added to integers.

    Parameters
    ----------
    release : Release
        Mechanism and scale, given in clips. How far neighbours are apart (one clip or
        two) follows from its relation.
    units : float
        The clip in lattice steps: ``Lattice.units`` of a lattice whose norm is the
        release's.
    d : int
        Number of values released.
    source : Source

    Returns
    -------
    array of int64, shape (d,)
        ``round(noise)``. Added to integers whose norm for each unit is at most
        ``units``, the result is the rounded outcome of the continuous mechanism: the
        **guarantee** is that of the release, up to :func:`delta_slack`.

    Raises
    ------
    ValueError
        For a d that is not the dimension the release was accounted for (staircases
        and balls), and for noise that does not fit 51 bits.
    """
    _check(release, units, d)
    step = release.sensitivity * units
    match release.mechanism:
        case "gaussian":
            return gaussian.draw_gaussian(release.scale * units, d, source)
        case "laplace":
            return laplace.draw_laplace(release.scale * units, d, source)
        case "laplace-ball":
            scale = step / release.epsilon0
            return laplace.draw_laplace_ball(scale, d, "l2", source)
        case "staircase":
            shape = release.epsilon0, release.gamma
            return staircase.draw_staircase(*shape, step, 1, source)
        case "staircase-ball":
            shape = release.epsilon0, release.gamma
            return staircase.draw_staircase_ball(*shape, step, d, "l2", source)
        case other:
            raise ValueError(f"Unknown mechanism {other!r}.")


def std(release: Release, units: float, d: int) -> float:
    """Return the standard deviation of each value of :func:`draw`, in steps."""
    of = gaussian.gaussian_std, laplace.laplace_std, staircase.staircase_std
    return _of_scale(release, units, d, *of)


def support(release: Release, units: float, d: int) -> float:
    """Return the largest absolute value that :func:`draw` can return, in steps.

    For :meth:`Lattice.check_sum`.
    """
    of = gaussian.support, laplace.support, staircase.support
    return _of_scale(release, units, d, *of)


def delta_slack(release: Release, d: int) -> float:
    """Return how far one draw may be from the ideal noise, in total variation.

    Below 1e-18 up to a billion values. An (epsilon, delta) guarantee of the ideal noise
    becomes ``delta + (1 + exp(epsilon)) * delta_slack``.
    """
    if release.mechanism == "gaussian":
        return gaussian.delta_slack(d)
    if release.mechanism.startswith("staircase"):
        return staircase.DELTA_SLACK
    return laplace.delta_slack(d)


def epsilon_slack(release: Release, d: int, draws: int) -> float:
    """Return what the finite bits of the samplers cost in epsilon.

    Parameters
    ----------
    d : int
        Values of one release.
    draws : int
        Values of all releases of a run.

    Returns
    -------
    float
        To be taken off epsilon. 0 for the ball mechanisms, for which there is no
        bound: their radius and direction are drawn with 53 bits or more.
    """
    # A clip has fewer than twice the steps of one that is a power of two.
    units = 2 * lattice_for(release, 1.0, d).units
    if release.mechanism == "gaussian":
        return gaussian.epsilon_slack(release.scale * units, draws)
    if release.mechanism == "laplace":
        return laplace.epsilon_slack(release.scale * units, draws)
    return 0.0


def _of_scale(
    release: Release,
    units: float,
    d: int,
    of_gaussian: Callable[[float], float],
    of_laplace: Callable[..., float],
    of_staircase: Callable[[float, float, float, int], float],
) -> float:
    """Call the mechanism's function with its scale in steps."""
    _check(release, units, d)
    step = release.sensitivity * units
    match release.mechanism:
        case "gaussian":
            return of_gaussian(release.scale * units)
        case "laplace":
            return of_laplace(release.scale * units)
        case "laplace-ball":
            return of_laplace(step / release.epsilon0, d, "l2")
        case _:
            return of_staircase(release.epsilon0, release.gamma, step, d)


def _norm(release: Release) -> Norm:
    return "l1" if release.norm == "l1" else "l2"


def _check(release: Release, units: float, d: int) -> None:
    """Refuse noise that is not what was accounted for."""
    if not (units > 0 and math.isfinite(units)):
        raise ValueError(f"Expected units={units}: a positive number of steps.")
    if release.mechanism == "staircase" and d != 1:
        raise ValueError(
            f"staircase noise on each of {d} values is not private at its epsilon: any "
            "shift can cross a step in every one. Use staircase-ball, or gaussian."
        )
    if release.mechanism not in ("gaussian", "laplace") and d != release.dimension:
        raise ValueError(
            f"{release.mechanism} was accounted for {release.dimension} values, "
            f"not for {d}."
        )
