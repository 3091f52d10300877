"""Privacy noise: what secure integers cost, against fast noise that is not private.

Goals, one thread, 1M values: Staircase as fast as NumPy's Laplace, Gaussian at least
0.6 times as fast as ``torch.randn``; clip, lattice and noise of one client at most 5 %
of its local epoch. Peers and refused variants give floating-point numbers, from
generators that can be recovered from their outputs or from uniforms of 24 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks._report import (
    Line,
    Trial,
    interleaved,
    line,
    main,
    milliseconds,
    progress,
)
from benchmarks.guard import _epoch as local_epoch
from strategies.mechanisms.clip import clip
from strategies.mechanisms.csprng import BLOCK, Source
from strategies.mechanisms.gaussian import draw_gaussian
from strategies.mechanisms.laplace import draw_laplace, draw_laplace_ball
from strategies.mechanisms.lattice import Norm, from_lattice, lattice
from strategies.mechanisms.staircase import draw_staircase, draw_staircase_ball

SEED = 1
SIZE = 1_000_000
# Staircase of least variance at epsilon 8, and at 1.
STAIRCASES = {8.0: 0.054838, 1.0: 0.416737}
STEPS = 2.0**22


def lines(quick: bool) -> Iterator[Line]:
    """Yield all lines; with ``quick`` fewer repeats."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield from samplers(repeats=15 if quick else 60)
        yield from client(repeats=15 if quick else 60)
        yield from share(repeats=2 if quick else 7)


def _loop(action: Callable[[], object]) -> Trial:
    return lambda: action


def samplers(repeats: int) -> Iterator[Line]:
    """Yield the time of each sampler of one value."""
    progress(f"noise: samplers, {SIZE:,} values")
    times = milliseconds(interleaved(_samplers(), repeats))
    each = {name: 1e6 * ms / SIZE for name, ms in times.items()}

    def compare(name: str, peer: str, goal: str | None, what: str) -> Line:
        return line(
            name,
            each[name],
            each[peer],
            goal=goal,
            unit="ns/value",
            note=f"{1000 / each[name]:.0f} M samples/s/core against "
            f"{1000 / each[peer]:.0f}; {what}; peer: {peer}; {SIZE:,} values, one "
            f"thread, best of {repeats} in turns",
        )

    ours = "int64 on the lattice, AES-256-CTR from the operating system, 54 bits"
    for name, peer, goal in (
        ("gaussian", "torch.randn", "ratio >= 0.6"),
        ("staircase, epsilon 8", "numpy laplace", "ratio >= 1"),
        ("staircase, epsilon 1", "numpy laplace", "ratio >= 1"),
        ("laplace", "numpy laplace", None),
        ("laplace in an L2 ball", "numpy laplace", None),
        ("staircase in an L2 ball", "numpy laplace", None),
    ):
        yield compare(name, peer, goal, ours)
    refused = "refused here: the sum with a secret leaks it in its last bits"
    for name, peer in (
        ("numpy standard_normal", "gaussian"),
        ("torch.randn", "gaussian"),
        ("torch.randn, float64", "gaussian"),
        ("numpy staircase", "staircase, epsilon 8"),
        ("24-bit staircase", "staircase, epsilon 8"),
    ):
        yield compare(name, peer, None, refused)


def _samplers() -> Mapping[str, Trial]:
    """Return the samplers by name, shipped ones first."""
    source, rng = Source(), np.random.default_rng(SEED)
    gamma = STAIRCASES[8.0]
    shipped: dict[str, Callable[[], object]] = {
        "gaussian": lambda: draw_gaussian(STEPS, SIZE, source),
        "laplace": lambda: draw_laplace(STEPS, SIZE, source),
        "laplace in an L2 ball": lambda: draw_laplace_ball(STEPS, SIZE, "l2", source),
        "staircase in an L2 ball": lambda: draw_staircase_ball(
            8.0, gamma, STEPS, SIZE, "l2", source
        ),
    }
    for epsilon, place in STAIRCASES.items():
        name = f"staircase, epsilon {epsilon:g}"
        shipped[name] = partial(draw_staircase, epsilon, place, STEPS, SIZE, source)
    others: dict[str, Callable[[], object]] = {
        "torch.randn": lambda: torch.randn(SIZE),
        "torch.randn, float64": lambda: torch.randn(SIZE, dtype=torch.float64),
        "numpy standard_normal": lambda: rng.standard_normal(SIZE),
        "numpy laplace": lambda: rng.laplace(size=SIZE),
        "numpy staircase": lambda: float_staircase(8.0, gamma, SIZE, rng),
        "24-bit staircase": lambda: narrow_staircase(8.0, gamma, SIZE, source),
    }
    return {name: _loop(action) for name, action in (shipped | others).items()}


def float_staircase(
    epsilon: float, gamma: float, n: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return Staircase noise by the paper's algorithm 1, in floating point."""
    b = math.exp(-epsilon)
    sign = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    step = rng.geometric(1 - b, n) - 1
    high = rng.random(n) < gamma / (gamma + (1 - gamma) * b)
    u = rng.random(n)
    place = np.where(high, gamma * u, gamma + (1 - gamma) * u)
    x: NDArray[np.float64] = sign * (step + place)
    return x


def narrow_staircase(
    epsilon: float, gamma: float, n: int, source: Source
) -> NDArray[np.float32]:
    """Return Staircase noise in float32, places of 24 bits, one word a value."""
    out = np.empty(n, np.float32)
    b = math.exp(-epsilon)
    high = gamma / (gamma + (1 - gamma) * b)
    for start in range(0, n, BLOCK):
        part = out[start : start + BLOCK]
        words = source.block(len(part)).view(np.uint32)
        u = (words[::2] >> 8) * np.float32(2.0**-24)
        v = ((words[1::2] >> 8) + 1) * np.float32(2.0**-24)
        np.floor(np.log(v) * np.float32(-1 / epsilon), out=part)
        part += u * np.float32(gamma / high)
        low = np.flatnonzero(u >= high)
        part[low] += gamma + (u[low] - high) * (1 - gamma) / (1 - high)
        part[low] -= u[low] * (gamma / high)
        np.negative(part, out=part, where=(words[1::2] & 1).astype(bool))
    return out


def client(repeats: int) -> Iterator[Line]:
    """Yield what clipping to the lattice costs, in reads of the update."""
    progress("noise: clip of one client")
    rng = np.random.default_rng(SEED)
    update = rng.standard_normal(SIZE).astype(np.float32)
    trials = {"read": _loop(lambda: update.sum())}
    norms: tuple[Norm, ...] = ("l2", "l1")
    for norm in norms:
        trials[norm] = _loop(partial(clip, update, lattice(1.0, SIZE, norm)))
    times = milliseconds(interleaved(trials, repeats))
    for norm in norms:
        yield line(
            f"clip to the lattice, {norm}",
            times[norm],
            times["read"],
            unit="ms",
            seeds=[SEED],
            note=f"clip of {SIZE:,} float32 to 1, int64 verified in exact integers; "
            f"{times[norm] / times['read']:.1f} reads; peer: one read (sum); one "
            f"thread, best of {repeats} in turns",
        )


def share(repeats: int) -> Iterator[Line]:
    """Yield client-level privacy of one client against its training."""
    progress("noise: one client against its local epoch")
    update = np.random.default_rng(SEED).standard_normal(SIZE).astype(np.float32)
    on = lattice(1.0, SIZE)

    def protect() -> object:
        integers = clip(update, on).integers
        integers += draw_gaussian(on.units, SIZE, Source())
        return from_lattice(integers, on)

    trials = {"protect": _loop(protect), "epoch": local_epoch()}
    times = milliseconds(interleaved(trials, repeats))
    yield line(
        "client-level privacy in a local epoch",
        times["protect"],
        times["epoch"],
        goal="ratio <= 0.05",
        unit="ms",
        seeds=[SEED],
        note=f"ours: clip, Gaussian noise and decoding of {SIZE:,} values; peer: a "
        "client's epoch: a CNN with 996,206 parameters on 1000 random 28x28 images, "
        f"batch 32; one thread, best of {repeats} in turns",
    )


if __name__ == "__main__":
    main(__doc__, lines)
