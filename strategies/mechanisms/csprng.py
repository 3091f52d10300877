"""Cryptographic randomness for privacy noise, as fast as the noise itself.

The keystream of AES-256 in counter mode (NIST SP 800-38A, section 6.5) under a key from
the operating system. Whoever cannot tell AES from a random permutation cannot tell the
noise from ideal noise; a generator such as PCG64 can be recovered from its outputs, and
then the noise subtracted.
"""

from __future__ import annotations

import hashlib
import os
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

__all__ = ["BLOCK", "Source"]

Words = NDArray[np.uint64]
Doubles = NDArray[np.float64]

# Words of one block: 128 KiB, with one block of results in a core's L2 cache.
BLOCK = 16_384
# Words under one key. A permutation repeats no block of 16 bytes, randomness does:
# after this many words the difference shows with probability below 2**-72.
WORDS_PER_KEY = 2**29
_ZEROS = bytes(8 * BLOCK)

# A child process made by a fork holds a copy of every key.
_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class Source:
    """A stream of random words that no other source, call or process repeats.

    A new source has a key of its own from the operating system. After a fork it takes a
    new key in the child. The key is not shown, pickled or copied. For one thread.

    Attributes
    ----------
    secure : bool
        False for :meth:`insecure` only. Reports must flag it.
    """

    def __init__(self) -> None:
        self.secure = True
        self._seed: bytes | None = None
        self._keys = 0
        # CTR asks for the room of one more block than it writes.
        self._buffer = bytearray(8 * BLOCK + 15)
        self._view = np.frombuffer(self._buffer, np.int64, BLOCK)
        self._rekey()

    @classmethod
    def insecure(cls, seed: int) -> Source:
        """Return the same stream for the same seed: for tests, never for privacy.

        Whoever knows or guesses the seed can subtract the noise. Use after a fork is
        refused with a RuntimeError, since the child would repeat the parent's words.
        """
        source = cls()
        source.secure = False
        source._seed = hashlib.sha256(f"insecure noise {seed!r}".encode()).digest()
        source._keys = 0
        source._rekey()
        return source

    def _rekey(self) -> None:
        """Start a keystream that was never used: a new key, the counter at 0."""
        key = os.urandom(32)
        if self._seed is not None:
            key = hashlib.sha256(self._seed + self._keys.to_bytes(8, "big")).digest()
        self._keys += 1
        self._process = (os.getpid(), _forks)
        self._left = WORDS_PER_KEY
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def block(self, n: int) -> NDArray[np.int64]:
        """Return ``n <= BLOCK`` random words as signed integers, shape (n,).

        A view of the source's own memory: valid, and free to be changed, until the next
        call of any method.
        """
        if self._process != (os.getpid(), _forks):
            if self._seed is not None:
                raise RuntimeError(
                    "An insecure source was used after a fork, where it would repeat "
                    "its words: make one in each process, with a seed of its own."
                )
            self._rekey()
        if self._left < n:
            self._rekey()
        self._left -= n
        zeros = _ZEROS if n == BLOCK else memoryview(_ZEROS)[: 8 * n]
        self._cipher.update_into(zeros, self._buffer)
        return self._view[:n]

    def words(self, n: int) -> Words:
        """Return ``n`` random 64-bit words, shape (n,)."""
        out = np.empty(n, np.uint64)
        for start in range(0, n, BLOCK):
            part = out[start : start + BLOCK]
            part[:] = self.block(len(part)).view(np.uint64)
        return out

    def uniforms(self, n: int) -> Doubles:
        """Return ``n`` uniform numbers on (0, 1], multiples of 2**-53, shape (n,)."""
        out: Doubles = (self.words(n) >> np.uint64(11)).astype(np.float64)
        out += 1
        out *= 2.0**-53
        return out

    def fine(self, n: int) -> Doubles:
        """Return ``n`` uniform numbers on (0, 1], multiples of 2**-106, shape (n,).

        As fine near 0 as float64 is there: their logarithms have no gaps in the tail.
        """
        high = self.words(n) >> np.uint64(11)
        return (high + self.uniforms(n)) * 2.0**-53

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A source of noise is not pickled or copied: make a new one.")

    def __repr__(self) -> str:
        return "Source()" if self.secure else "Source.insecure(...)"
