"""Values in 8 or 16 bits, with one scale for every block of them.

Codes are sign symmetric, -127 to 127: whatever the rounding, the code of -x is spread
like minus the code of x.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ProtocolError

__all__ = [
    "BLOCK",
    "LEVELS",
    "block_scales",
    "checked_codes",
    "checked_scales",
    "dequantise",
    "nearest_codes",
    "scale_bytes",
    "stochastic_codes",
]

Float32 = NDArray[np.float32]
Codes = NDArray[np.int8]

BLOCK = 4096
LEVELS = 127


def scale_bytes(n: int) -> int:
    """Return the bytes of the scales of n values."""
    return 4 * -(-n // BLOCK)


def block_scales(x: Float32) -> Float32:
    """Return the largest magnitude of each block, shape (ceil(d / BLOCK),)."""
    if not len(x):
        return np.empty(0, np.float32)
    starts = np.arange(0, len(x), BLOCK)
    high = np.maximum.reduceat(x, starts)
    return np.maximum(high, -np.minimum.reduceat(x, starts))


def stochastic_codes(x: Float32, scales: Float32, rng: np.random.Generator) -> Codes:
    """Round ``127 * x / scale`` up or down by chance, without bias.

    Parameters
    ----------
    x : float32 array of shape (d,)
    scales : float32 array of shape (ceil(d / BLOCK),)
        :func:`block_scales` of x.
    rng : numpy.random.Generator
        One float32 a value.

    Returns
    -------
    int8 array of shape (d,)
        ``E[codes] = 127 * x / scale`` to 1e-5 of a step (float32), |code| <= 127.

    Notes
    -----
    Stochastic rounding as in QSGD (Alistarh et al., NeurIPS 2017) with 127 levels; the
    scale is the largest magnitude of a block, not the norm.
    """
    codes = np.empty(len(x), np.int8)
    for number, start in enumerate(range(0, len(x), BLOCK)):
        part = x[start : start + BLOCK]
        steps = rng.random(len(part), np.float32)
        # Divided first: 127 / scale is Inf for the smallest subnormal scales.
        level = np.divide(part, scales[number] or np.float32(1))
        level *= LEVELS
        steps += level
        np.floor(steps, out=steps)
        # An ulp above 127 must not become -128.
        np.clip(steps, -LEVELS, LEVELS, out=steps)
        codes[start : start + BLOCK] = steps
    return codes


def nearest_codes(x: Float32, scales: Float32) -> Codes:
    """Round ``127 * x / scale`` to the nearest, shape (d,); |x| <= scale."""
    codes = np.empty(len(x), np.int8)
    for number, start in enumerate(range(0, len(x), BLOCK)):
        level = np.divide(x[start : start + BLOCK], scales[number] or np.float32(1))
        level *= LEVELS
        np.rint(level, out=level)
        codes[start : start + BLOCK] = level
    return codes


def dequantise(codes: Codes, scales: Float32) -> Float32:
    """Return ``codes / 127 * scale``, shape (d,): finite for finite scales."""
    x = np.empty(len(codes), np.float32)
    for number, start in enumerate(range(0, len(codes), BLOCK)):
        part = x[start : start + BLOCK]
        # Not scale / 127, which is 0 for the smallest subnormal scales.
        np.divide(codes[start : start + BLOCK], np.float32(LEVELS), out=part)
        part *= scales[number]
    return x


def checked_scales(data: memoryview) -> Float32:
    """Return received scales.

    Raises
    ------
    ProtocolError
        ``scale``: one is NaN, infinite or negative.
    """
    scales = np.frombuffer(data, "<f4")
    if not np.all(np.isfinite(scales) & (scales >= 0)):
        raise ProtocolError("scale", "a scale is not finite or negative")
    return scales.astype(np.float32, copy=False)


def checked_codes(data: memoryview) -> Codes:
    """Return received codes.

    Raises
    ------
    ProtocolError
        ``value``: one is -128.
    """
    codes = np.frombuffer(data, np.int8)
    if len(codes) and codes.min() < -LEVELS:
        raise ProtocolError("value", "a code below -127")
    return codes
