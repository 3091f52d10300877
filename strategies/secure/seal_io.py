"""Microsoft SEAL through TenSEAL, and ciphertexts that SEAL need not parse.

SEAL's own reader is not fit for bytes from outside: one flipped bit in its compressed
stream ends the process (measured with TenSEAL 0.3.18), and it decompresses all of a
stream before it checks anything. So a ciphertext travels as numbers alone, in a form
whose length is fixed, and is put into a frame that this process made with SEAL itself.
All that a hostile sender can choose is coefficients, each checked to be below the
modulus, and a seed: every choice is a valid ciphertext of something.

Message format of a ciphertext
------------------------------
The coefficients of one polynomial (with a seed) or two, then the 64 bytes of the seed
from which SEAL makes the second polynomial, if there is one. Coefficients below
``2**bits``, bits a multiple of 4 from 36 on: first the low 32 bits of all of them
(uint32, little-endian), then the high bits, two by two, in ``(bits - 32) / 4`` bytes.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from truststram.errors import ConfigError, ProtocolError

from .parameters import DEGREE, Parameters

__all__ = ["Form", "Memory", "form_of", "load_seal", "seal_context"]

# SEAL's header of a stream: magic, its length, version, compression, size of all.
HEADER = struct.Struct("<HBBBBHQ")
SEED = 64
# Between the coefficients and the seed: a header, and the kind of generator.
BETWEEN = HEADER.size + 1
LARGEST = 2**22


def load_seal() -> Any:
    """Return SEAL's bindings; importing them takes a moment."""
    import tenseal.sealapi as seal

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
        # One for each operation: it is not safe in two threads.
        self._zstd = zstandard.ZstdDecompressor()
        self._fd = os.memfd_create("seal", os.MFD_CLOEXEC)
        self._path = f"/proc/self/fd/{self._fd}"
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def saved(self, thing: Any) -> bytes:
        """Return what SEAL writes of ``thing``: a header and a Zstandard frame."""
        os.ftruncate(self._fd, 0)
        thing.save(self._path)
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def members(self, thing: Any) -> bytes:
        """Return what SEAL writes of ``thing``, decompressed, without the header."""
        data = memoryview(self.saved(thing))[HEADER.size :]
        return self._zstd.decompress(data, max_output_size=LARGEST)

    def load(self, thing: Any, context: Any, *parts: bytes | memoryview) -> Any:
        """Return ``thing`` after SEAL has read ``parts`` into it; trusted bytes only.

        Raises
        ------
        ValueError
            If SEAL does not accept them.
        """
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.writev(self._fd, parts)
        try:
            thing.load(context, self._path)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        return thing


@dataclass(frozen=True)
class Form:
    """How ciphertexts of one kind travel, and what SEAL's form has around them.

    Attributes
    ----------
    polynomials : int
        1 with a seed, 2 without.
    modulus : int
        Coefficients are below it.
    start, between : bytes
        What SEAL writes before the coefficients and before the seed.
    """

    polynomials: int
    modulus: int
    start: bytes
    between: bytes

    @property
    def bits(self) -> int:
        """Bits of a coefficient."""
        return self.modulus.bit_length()

    @property
    def size(self) -> int:
        """Bytes of a ciphertext."""
        seed = SEED if self.between else 0
        return self.polynomials * DEGREE * self.bits // 8 + seed

    def shortened(self, members: bytes) -> bytes:
        """Return a ciphertext as it travels, from what this process's SEAL wrote."""
        at, count = len(self.start), self.polynomials * DEGREE
        values = np.frombuffer(members, "<u8", count, offset=at)
        rest = members[at + 8 * count :]
        return _packed(values, self.bits) + rest[len(self.between) :]

    def coefficients(self, data: memoryview) -> NDArray[np.uint64]:
        """Return the coefficients of a ciphertext from outside.

        Raises
        ------
        ProtocolError
            ``ciphertext``, for another length or a coefficient out of range.
        """
        if len(data) != self.size:
            raise ProtocolError("ciphertext", f"{len(data)} bytes, not {self.size}")
        values = _unpacked(data, self.polynomials * DEGREE, self.bits)
        if int(values.max()) >= self.modulus:
            raise ProtocolError("ciphertext", "a coefficient is out of range")
        return values

    def loaded(
        self, memory: Memory, sealed: Any, context: Any, data: memoryview
    ) -> Any:
        """Read a ciphertext from outside into ``sealed``; as :meth:`coefficients`."""
        values = self.coefficients(data)
        seed = data[len(values) * self.bits // 8 :]
        parts = (self.start, values.data.cast("B"), self.between, seed)
        header = _header(sum(map(len, parts)))
        return memory.load(sealed, context, header, *parts)


@lru_cache(maxsize=16)
def form_of(parameters: Parameters, seeded: bool) -> Form:
    """Return the form of ciphertexts, from one that is made here and thrown away."""
    seal, context = load_seal(), seal_context(parameters)
    first = context.first_context_data().parms()
    [modulus] = [m.value() for m in first.coeff_modulus()]
    maker = seal.KeyGenerator(context)
    encryptor = seal.Encryptor(context, maker.secret_key())
    plain = seal.Plaintext()
    if parameters.scheme == "bfv":
        seal.BatchEncoder(context).encode([1, 2, 3], plain)
    else:
        seal.CKKSEncoder(context).encode([1.0], 2.0**parameters.scale, plain)
    with Memory() as memory:
        sealed = encryptor.encrypt_symmetric(plain)
        if not seeded:
            sealed = seal.Ciphertext()
            encryptor.encrypt_symmetric(plain, sealed)
        members = memory.members(sealed)
    end = BETWEEN + SEED if seeded else 0
    polynomials = 1 if seeded else 2
    start = len(members) - 8 * DEGREE * polynomials - end
    between = members[len(members) - end :][:BETWEEN] if seeded else b""
    return Form(polynomials, modulus, members[:start], between)


@lru_cache(maxsize=1)
def _version() -> tuple[int, int]:
    """Return the version that SEAL writes into its headers."""
    seal = load_seal()
    with Memory() as memory:
        stream = memory.saved(seal.EncryptionParameters(seal.SCHEME_TYPE.BFV))
    _, _, major, minor, _, _, _ = HEADER.unpack_from(stream)
    return major, minor


def _header(size: int) -> bytes:
    """Return the header of a stream that is not compressed."""
    return HEADER.pack(0xA15E, HEADER.size, *_version(), 0, 0, HEADER.size + size)


def _packed(values: NDArray[np.uint64], bits: int) -> bytes:
    """Return coefficients below ``2**bits`` without their leading zeros."""
    high, width = values >> np.uint64(32), (bits - 32) // 4
    pairs = high[0::2] | high[1::2] << np.uint64(bits - 32)
    if width in (1, 2, 4):
        narrow = pairs.astype(f"<u{width}")
    else:  # several times as slow
        narrow = np.ascontiguousarray(pairs.view(np.uint8).reshape(-1, 8)[:, :width])
    return b"".join((values.astype("<u4").data, narrow.data))


def _unpacked(data: memoryview, count: int, bits: int) -> NDArray[np.uint64]:
    """Return the ``count`` coefficients that :func:`_packed` was given."""
    width = (bits - 32) // 4
    pairs = np.zeros((count // 2, 8), np.uint8)
    tail = np.frombuffer(data, np.uint8, count // 2 * width, offset=4 * count)
    pairs[:, :width] = tail.reshape(-1, width)
    both = pairs.view("<u8").reshape(-1)
    values = np.empty(count, np.uint64)
    values[0::2] = both & np.uint64(2 ** (bits - 32) - 1)
    values[1::2] = both >> np.uint64(bits - 32)
    values <<= np.uint64(32)
    values |= np.frombuffer(data, "<u4", count)
    return values
