"""Microsoft SEAL through TenSEAL: contexts, and reading and writing without files.

SEAL's bindings read and write paths only; here these are files in memory. Bytes from
outside are bounded before SEAL sees them.
"""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from typing import Any

from truststram.errors import ConfigError, ProtocolError

from .parameters import DEGREE, Parameters

__all__ = ["Memory", "load_seal", "seal_context"]

SEAL_MAGIC, ZSTD_MAGIC = 0xA15E, 0xFD2FB528
ZSTD_BLOCK = 128 * 2**10


def load_seal() -> Any:
    """Return SEAL's bindings.

    Raises
    ------
    ConfigError
        If TenSEAL is not installed.
    """
    try:
        import tenseal.sealapi as seal
    except ImportError:
        raise ConfigError(
            "secure.scheme = ckks and bfv need TenSEAL, which is not installed: "
            "pip install 'truststram-fl[secure]'."
        ) from None
    return seal


@lru_cache(maxsize=8)
def seal_context(parameters: Parameters) -> Any:
    """Return a SEAL context with 128 bits of security."""
    seal = load_seal()
    bfv = parameters.scheme == "bfv"
    kind = seal.SCHEME_TYPE.BFV if bfv else seal.SCHEME_TYPE.CKKS
    level = seal.SEC_LEVEL_TYPE.TC128
    if sum(parameters.primes) > seal.CoeffModulus.MaxBitCount(DEGREE, level):
        raise ConfigError("These parameters have less than 128 bits of security.")
    made = seal.EncryptionParameters(kind)
    made.set_poly_modulus_degree(DEGREE)
    made.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, list(parameters.primes)))
    if bfv:
        t = seal.PlainModulus.Batching(DEGREE, parameters.plain)
        most = parameters.most * (2**parameters.bits - 2)
        if most * (2**parameters.lane + 1) >= t.value():
            raise ConfigError("The sum of two lanes does not fit into a slot.")
        made.set_plain_modulus(t)
    context = seal.SEALContext(made, True, level)
    if not context.parameters_set():
        raise ConfigError(f"SEAL: {context.parameters_error_message()}")
    return context


class Memory:
    """A file in memory for SEAL, which reads and writes paths only."""

    def __enter__(self) -> Memory:
        self._fd = os.memfd_create("seal", os.MFD_CLOEXEC)
        self.path = f"/proc/self/fd/{self._fd}"
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def saved(self, thing: Any) -> bytes:
        """Return what SEAL writes of ``thing``."""
        os.ftruncate(self._fd, 0)
        thing.save(self.path)
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def load(self, thing: Any, context: Any, data: bytes | memoryview) -> Any:
        """Return ``thing`` after SEAL has read ``data`` into it.

        Raises
        ------
        ProtocolError
            ``ciphertext``, for anything that is not valid for the context.
        """
        _check_stream(data)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)
        try:
            thing.load(context, self.path)
        except (RuntimeError, ValueError, IndexError, MemoryError):
            raise ProtocolError("ciphertext", "SEAL does not accept it") from None
        return thing


def _check_stream(data: bytes | memoryview) -> None:
    """Refuse what SEAL would decompress into more than a ciphertext.

    SEAL decompresses all of a stream before it checks anything, and a Zstandard block
    of four bytes may stand for 128 KiB (RFC 8878, section 3.1.1.2).
    """
    if len(data) < 28:
        raise ProtocolError("ciphertext", "shorter than any ciphertext")
    magic, header, _, _, mode, _, size = struct.unpack_from("<HBBBBHQ", data)
    if (magic, header, mode, size) != (SEAL_MAGIC, 16, 2, len(data)):
        raise ProtocolError("ciphertext", "not SEAL's format with Zstandard")
    if _zstd_blocks(data[16:]) * ZSTD_BLOCK > 4 * 16 * DEGREE:
        raise ProtocolError("ciphertext", "it would be decompressed to too much")


def _zstd_blocks(data: bytes | memoryview) -> int:
    """Return the number of blocks of the one Zstandard frame in ``data``."""
    magic, descriptor = struct.unpack_from("<IB", data)
    if magic != ZSTD_MAGIC or descriptor & 0x0B:  # reserved bit, dictionary
        raise ProtocolError("ciphertext", "not a plain Zstandard frame")
    single = bool(descriptor & 0x20)
    content = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    at = 5 + (0 if single else 1) + content
    blocks = 0
    while at + 3 <= len(data):
        block = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        at += 3 + (1 if kind == 1 else size)
        blocks += 1
        if last:
            # A checksum may follow, and nothing else: no second frame.
            at += 4 if descriptor & 4 else 0
            break
    if at != len(data):
        raise ProtocolError("ciphertext", "not one whole Zstandard frame")
    return blocks
