"""What codecs are measured against: naive top-k, zstd, and SZ3 if it is installed."""

from __future__ import annotations

import numpy as np
import torch
import zstandard

from truststram.records import Float32

__all__ = ["naive_topk", "sz3_at", "zstd"]


def naive_topk(x: Float32, k: int) -> bytes:
    """Return the k largest as torch.topk finds them: int64 places, float32 values."""
    tensor = torch.from_numpy(x)
    _, places = torch.topk(tensor.abs(), k, sorted=False)
    return places.numpy().tobytes() + tensor[places].numpy().tobytes()


def zstd(x: Float32) -> bytes:
    """Return the values by zstd at level 1, without loss."""
    return zstandard.ZstdCompressor(level=1).compress(x.tobytes())


def sz3_at(x: Float32, error: float) -> tuple[int, float] | None:
    """Return the bytes of SZ3 (pysz) at an error, and its error.

    SZ3 (Liang et al., "SZ3: A Modular Framework for Composing Prediction-Based
    Error-Bounded Lossy Compressors", IEEE TBD 2022) bounds the largest error; the bound
    is searched for at which the squared error is the one asked for. Without prediction,
    which is its best algorithm for updates.

    Parameters
    ----------
    x : float32 array of shape (d,)
    error : float
        ``|x - decoded|**2 / |x|**2``.

    Returns
    -------
    (int, float) or None
        None if pysz is not installed.
    """
    try:
        from pysz import sz, szAlgorithm, szConfig, szErrorBoundMode
    except ImportError:
        return None

    def at(bound: float) -> tuple[int, float]:
        config = szConfig()
        config.errorBoundMode = szErrorBoundMode.ABS
        config.absErrorBound = bound
        config.cmprAlgo = szAlgorithm.NOPRED
        data, _ = sz.compress(x, config)
        decoded, _ = sz.decompress(data, np.float32, x.shape)
        off = np.linalg.norm((x - decoded).astype(np.float64))
        return len(data), float(off / np.linalg.norm(x.astype(np.float64))) ** 2

    low, high = 0.0, float(np.abs(x).max())
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle)[1] > error else (middle, high)
    return at(low)
