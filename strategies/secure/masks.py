"""Masks that cancel in a sum: AES-256 keystreams added modulo 2^k.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS 2017, section 4. Differences: the generator is AES-256 in counter mode under a full
256-bit key, never reduced to a shorter seed, and every mask is the keystream itself, so
that each value of ``Z/2^k`` is equally likely. (Flower 1.41's generator folds the key
to 32 bits, seeds a Mersenne twister with them and never draws the largest value:
whoever sees a few masked zeros finds it by trying 2^32 seeds.)

Mathematics (x, shape (n,), unsigned integers of k = 16, 32 or 64 bits)
-----------------------------------------------------------------------
``y = x + sum_i sign_i PRG(key_i)  mod 2^k``, computed in place, block by block, so that
keystream, mask and sum stay in the processor's cache. Unsigned numpy arithmetic is
arithmetic modulo 2^k.

Guarantees
----------
Under a key that nobody else knows, y is computationally indistinguishable from uniform,
independently of x (AES-256 as a pseudorandom permutation, at most 2^32 blocks a key).
A key is used once: it is derived from secrets and from what the sum is (job, round,
cohort), see :func:`derive_key`, and the counter starts at zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from truststram.errors import ProtocolError

from .fields import join

__all__ = ["KEY_BYTES", "add_masks", "agree", "derive_key", "public_key", "word"]

KEY_BYTES = 32
# Bytes of keystream at a time: with the sum and the zeros, in a core's level 2 cache.
BLOCK = 2**18
ZEROS = bytes(BLOCK)


def word(bits: int) -> np.dtype[Any]:
    """Return the smallest dtype whose arithmetic holds numbers below 2^bits.

    Raises
    ------
    ValueError
        If there is none (more than 64 bits).
    """
    for size in (16, 32, 64):
        if 0 < bits <= size:
            return np.dtype(f"<u{size // 8}")
    raise ValueError(f"Expected 1 <= bits={bits} <= 64.")


def derive_key(secret: bytes, *purpose: bytes) -> bytes:
    """Return a 256-bit key for one purpose (HKDF-SHA256, RFC 5869).

    Different purposes give independent keys of the same secret.
    """
    info = join([b"truststram", *purpose])
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key, 32 bytes, of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """Return the X25519 shared secret, 32 bytes (RFC 7748).

    Raises
    ------
    ProtocolError
        ``public-key`` for the few keys with which the secret would be known to all.
    """
    try:
        own = X25519PrivateKey.from_private_bytes(private)
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except (ValueError, InvalidKey):
        raise ProtocolError("public-key", "not an X25519 key of full order") from None


def add_masks(
    values: NDArray[np.unsignedinteger[Any]], masks: Iterable[tuple[bytes, bool]]
) -> None:
    """Add masks to ``values`` (n,) in place, modulo 2^k of its dtype.

    Parameters
    ----------
    values : contiguous array of uint16, uint32 or uint64
    masks : iterable of (key, negative)
        32-byte keys; ``negative`` subtracts the mask of that key.
    """
    streams = [
        (Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor(), negative)
        for key, negative in masks
    ]
    step = BLOCK // values.itemsize
    buffer = bytearray(BLOCK)
    words = np.frombuffer(buffer, values.dtype)
    for start in range(0, len(values), step):
        part = values[start : start + step]
        mask, data = words[: len(part)], memoryview(buffer)[: part.nbytes]
        zeros = memoryview(ZEROS)[: part.nbytes]
        for stream, negative in streams:
            stream.update_into(zeros, data)
            (np.subtract if negative else np.add)(part, mask, out=part)
