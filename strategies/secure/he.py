"""Sums of integers under homomorphic encryption: BFV and CKKS through Microsoft SEAL.

BFV: Fan and Vercauteren, "Somewhat Practical Fully Homomorphic Encryption", IACR ePrint
2012/144. CKKS: Cheon, Kim, Kim, Song, ASIACRYPT 2017. Only additions are ever done, so
there is one ciphertext prime and there are no relinearisation or Galois keys.

Mathematics (N slots, n values q < 2**bits, at most ``most`` clients)
---------------------------------------------------------------------
*BFV* has N slots of integers modulo a prime t. Two values share a slot: ``lo + hi *
2**lane``, with ``lane = bits + ceil(log2 most)``, so that no sum reaches into the
neighbour.

*CKKS* has N/2 complex slots: two centred values, real and imaginary part, times
``2**scale``. Its result has noise, and noise tells of the key (Li and Micciancio,
"On the Security of Homomorphic Encryption on Approximate Numbers", EUROCRYPT 2021).
Here values are integers and the scale is so large that rounding finds the exact sum:
what is released is the integer, as in BFV, and no noise.

Noise: an encryption under the secret key adds to each coefficient a centred binomial
value of variance 10.5; one under a public key, after SEAL has switched to the smaller
modulus, (1 + 2N/3)/12. Their sum over the clients stays below ``TAIL`` standard
deviations but for 2**-61 a coefficient (Hoeffding's bound for sums of bounded terms),
and the parameters leave that much room. A slot of CKKS is a sum over N coefficients,
its real part having N/2 times their variance.

Security: 128 bits by SEAL's own bound (the homomorphic encryption standard's table),
checked when a context is made. Encryption under the secret key ships a seed for one of
the two polynomials, which halves it.

Message format of a body: for each ciphertext its length (uint32, big-endian) and SEAL's
serialisation. Nothing here is pickled; sizes are bounded before SEAL sees them.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ConfigError, ProtocolError

from .quantise import Quantiser
from .wire import digest

__all__ = ["Cipher", "Parameters", "choose", "load_seal"]

DEGREE = 4096
TAIL = 9.3
BINOMIAL = 10.5
# A seeded ciphertext under the secret key is 56 bits wide a coefficient; the second
# prime of public keys serves only to reduce the noise of encryption.
BFV_PRIME, SPECIAL_PRIME = 56, 53
CKKS_BITS = 20
MIN_BITS = 12
LENGTH = struct.Struct(">I")
SEAL_MAGIC, ZSTD_MAGIC = 0xA15E, 0xFD2FB528
ZSTD_BLOCK = 128 * 2**10


@dataclass(frozen=True)
class Parameters:
    """Everything that all clients of a sum have in common, but the key.

    Attributes
    ----------
    scheme : str
        ``bfv`` or ``ckks``.
    public : bool
        Encryption under a public key.
    most : int
        Largest number of clients in a sum.
    bits : int
        Bits of one client's value.
    primes : tuple of int
        Bits of the ciphertext primes; the last of two is for keys only.
    plain : int
        BFV: bits of t.
    scale : int
        CKKS: the values are multiplied by ``2**scale``.
    """

    scheme: str
    public: bool
    most: int
    bits: int
    primes: tuple[int, ...]
    plain: int = 0
    scale: int = 0

    @property
    def lane(self) -> int:
        """BFV: bits of a slot that one value has."""
        return self.plain // 2

    @property
    def per_ciphertext(self) -> int:
        """Values in one ciphertext."""
        return 2 * DEGREE if self.scheme == "bfv" else DEGREE

    def ciphertexts(self, n: int) -> int:
        """Return how many ciphertexts ``n`` values need."""
        return -(-n // self.per_ciphertext)

    def most_bytes(self, n: int, *, summed: bool = False) -> int:
        """Return the largest body of ``n`` values that is accepted."""
        # SEAL's format has 8 bytes a coefficient before compression; one polynomial
        # is a seed unless the ciphertext is a sum or made with a public key.
        polynomials = 2 if summed or self.public else 1
        return self.ciphertexts(n) * (polynomials * 8 * DEGREE + 1024)

    @property
    def hash(self) -> str:
        """Hash of all fields."""
        return digest(repr(sorted(asdict(self).items())).encode())


def choose(scheme: str, most: int, *, public: bool = False) -> Parameters:
    """Return the parameters with the finest grid that sums of ``most`` clients allow.

    Raises
    ------
    ConfigError
        If no grid of at least 12 bits does.
    """
    if scheme == "ckks":
        deviation = math.sqrt(BINOMIAL * most * DEGREE / 2)
        scale = math.ceil(math.log2(2 * TAIL * deviation))
        largest = math.sqrt(2) * most * 2 ** (CKKS_BITS - 1) * 2**scale
        prime = math.ceil(math.log2(2.05 * largest))
        found = Parameters(scheme, False, most, CKKS_BITS, (prime,), scale=scale)
    else:
        switched = (1 + 2 * DEGREE / 3) / 12
        deviation = math.sqrt(most * ((switched if public else BINOMIAL) + 1 / 12))
        room = math.floor(BFV_PRIME - 1.02 - math.log2(TAIL * deviation))
        lane = room // 2
        bits = min(lane - (most - 1).bit_length(), 24)
        primes = (BFV_PRIME, SPECIAL_PRIME) if public else (BFV_PRIME,)
        found = Parameters(scheme, public, most, bits, primes, plain=2 * lane)
    if found.bits < MIN_BITS or max(found.primes) > 60:
        raise ConfigError(
            f"{scheme} cannot add {most} clients with {MIN_BITS} bits a value. Lower "
            "secure.max-cohort, or use secure.scheme = secagg."
        )
    return found


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
def _context(parameters: Parameters) -> Any:
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


class _Memory:
    """A file in memory for SEAL, which reads and writes paths only."""

    def __enter__(self) -> _Memory:
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


class Cipher:
    """Encrypts, adds and decrypts vectors of integers.

    Parameters
    ----------
    parameters : Parameters
    secret, public : bytes, optional
        SEAL's serialised keys. Without any, only :meth:`add` works: that is the server.

    Guarantees
    ----------
    ``decrypt(add([encrypt(q1), ...]))`` is the exact sum of up to ``most`` vectors but
    for a chance of 2**-61 a coefficient; IND-CPA at 128 bits. No integrity: whoever can
    add ciphertexts can also change a sum.
    """

    def __init__(
        self,
        parameters: Parameters,
        secret: bytes | None = None,
        public: bytes | None = None,
    ) -> None:
        self.parameters = parameters
        self._seal = load_seal()
        self._context = _context(parameters)
        self._secret, self._public = secret, public

    @classmethod
    def generate(cls, parameters: Parameters) -> tuple[bytes, bytes]:
        """Return a new secret key and, if the parameters want one, its public key."""
        seal, context = load_seal(), _context(parameters)
        maker = seal.KeyGenerator(context)
        public = b""
        with _Memory() as memory:
            if parameters.public:
                key = seal.PublicKey()
                maker.create_public_key(key)
                public = memory.saved(key)
            return memory.saved(maker.secret_key()), public

    @cached_property
    def _encryptor(self) -> Any:
        seal, p = self._seal, self.parameters
        data = self._public if p.public else self._secret
        if data is None:
            raise ConfigError("There is no key here to encrypt with.")
        key = seal.PublicKey() if p.public else seal.SecretKey()
        return seal.Encryptor(self._context, self._key(key, data))

    @cached_property
    def _decryptor(self) -> Any:
        if self._secret is None:
            raise ConfigError("There is no secret key here to decrypt with.")
        key = self._key(self._seal.SecretKey(), self._secret)
        return self._seal.Decryptor(self._context, key)

    @cached_property
    def _encoder(self) -> Any:
        bfv = self.parameters.scheme == "bfv"
        make = self._seal.BatchEncoder if bfv else self._seal.CKKSEncoder
        return make(self._context)

    def _key(self, key: Any, data: bytes) -> Any:
        try:
            with _Memory() as memory:
                return memory.load(key, self._context, data)
        except ProtocolError:
            raise ConfigError("The key does not belong to these parameters.") from None

    def encrypt(self, q: NDArray[np.unsignedinteger]) -> bytes:
        """Return the body of ``q``, shape (n,), each value below ``2**bits``."""
        seal, parts = self._seal, list[bytes]()
        with _Memory() as memory:
            for plain in self._encoded(q):
                if self.parameters.public:
                    sealed = seal.Ciphertext()
                    self._encryptor.encrypt(plain, sealed)
                else:  # keeps the seed; the other form of this call does not
                    sealed = self._encryptor.encrypt_symmetric(plain)
                data = memory.saved(sealed)
                parts += [LENGTH.pack(len(data)), data]
        return b"".join(parts)

    def _encoded(self, q: NDArray[np.unsignedinteger]) -> Iterator[Any]:
        p, per = self.parameters, self.parameters.per_ciphertext
        if p.scheme == "ckks":
            half = Quantiser(1.0, p.bits, p.most).half
        for start in range(0, len(q), per):
            block = np.zeros(per, np.uint64)
            part = q[start : start + per]
            block[: len(part)] = part
            plain = self._seal.Plaintext()
            if p.scheme == "bfv":
                block[DEGREE:] <<= np.uint64(p.lane)
                self._encoder.encode((block[:DEGREE] | block[DEGREE:]).tolist(), plain)
            else:
                pairs = (block.astype(np.float64) - half).view(np.complex128)
                self._encoder.encode(pairs.tolist(), 2.0**p.scale, plain)
            yield plain

    def add(self, bodies: Sequence[bytes | memoryview], n: int) -> bytes:
        """Return the body of the sum of bodies of ``n`` values; needs no key.

        Raises
        ------
        ProtocolError
            ``ciphertext``, if one of them is not valid. Check each with :meth:`check`
            first to know which.
        ValueError
            For no body, or more than ``most``.
        """
        if not 1 <= len(bodies) <= self.parameters.most:
            raise ValueError(f"{len(bodies)} bodies, at most {self.parameters.most}")
        evaluator = self._seal.Evaluator(self._context)
        parts = list[bytes]()
        with _Memory() as memory:
            for column in zip(*(self._split(b, n) for b in bodies), strict=True):
                total = self._loaded(memory, column[0])
                for data in column[1:]:
                    evaluator.add_inplace(total, self._loaded(memory, data))
                saved = memory.saved(total)
                parts += [LENGTH.pack(len(saved)), saved]
        return b"".join(parts)

    def check(self, body: bytes | memoryview, n: int) -> None:
        """Refuse a body that cannot be added.

        Raises
        ------
        ProtocolError
            ``ciphertext``.
        """
        with _Memory() as memory:
            for data in self._split(body, n):
                self._loaded(memory, data)

    def _split(self, body: bytes | memoryview, n: int) -> list[memoryview]:
        """Return the ciphertexts of a body, after checking number and sizes."""
        view, found, at = memoryview(body), list[memoryview](), 0
        expected = self.parameters.ciphertexts(n)
        while at + LENGTH.size <= len(view) and len(found) < expected:
            (length,) = LENGTH.unpack_from(view, at)
            at += LENGTH.size
            found.append(view[at : at + length])
            at += length
        if len(found) != expected or at != len(view):
            raise ProtocolError("ciphertext", f"not {expected} whole ciphertexts")
        return found

    def _loaded(self, memory: _Memory, data: memoryview) -> Any:
        loaded = memory.load(self._seal.Ciphertext(), self._context, data)
        ckks = self.parameters.scheme == "ckks"
        fits = (
            loaded.size() == 2
            and loaded.parms_id() == self._context.first_parms_id()
            and loaded.is_ntt_form() == ckks
            and (not ckks or loaded.scale == 2.0**self.parameters.scale)
        )
        if not fits:
            raise ProtocolError("ciphertext", "of another kind than expected")
        return loaded

    def decrypt(
        self, body: bytes | memoryview, n: int, count: int
    ) -> NDArray[np.int64]:
        """Return the sum of ``count`` vectors, shape (n,), as exact integers.

        Raises
        ------
        ProtocolError
            ``ciphertext``. A wrong key gives wrong integers, not an error: check their
            range and their checksum.
        """
        p, per = self.parameters, self.parameters.per_ciphertext
        total = np.empty(p.ciphertexts(n) * per, np.int64)
        plain = self._seal.Plaintext()
        with _Memory() as memory:
            for i, data in enumerate(self._split(body, n)):
                sealed = self._loaded(memory, data)
                self._decryptor.decrypt(sealed, plain)
                total[i * per : (i + 1) * per] = self._decoded(plain, count)
        return total[:n]

    def _decoded(self, plain: Any, count: int) -> NDArray[np.int64]:
        p = self.parameters
        if p.scheme == "bfv":
            slots = np.array(self._encoder.decode_uint64(plain), np.int64)
            lanes: NDArray[np.int64] = np.concatenate(
                [slots & (2**p.lane - 1), slots >> p.lane]
            )
            return lanes
        pairs = np.array(self._encoder.decode_complex(plain), np.complex128)
        rounded = np.rint(pairs.view(np.float64))
        # Far out of any range: a wrong key. Keep the conversion defined.
        np.clip(rounded, -(2.0**52), 2.0**52, out=rounded)
        half = Quantiser(1.0, p.bits, p.most).half
        return rounded.astype(np.int64) + count * half
