"""Sums of integers under homomorphic encryption: BFV and CKKS through Microsoft SEAL.

BFV: Fan and Vercauteren, "Somewhat Practical Fully Homomorphic Encryption", IACR ePrint
2012/144. CKKS: Cheon, Kim, Kim, Song, "Homomorphic Encryption for Arithmetic of
Approximate Numbers", ASIACRYPT 2017. Differences: only additions are ever done, so
there is one ciphertext prime and there are no relinearisation or Galois keys; CKKS
carries integers and its result is rounded to them (:mod:`.parameters`).

Encryption under the secret key ships a seed for one of the two polynomials of a
ciphertext, which halves it.

Message format of a body: one ciphertext after another (:mod:`.seal_io`); their number
and sizes follow from the parameters and the length of the vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ConfigError, ProtocolError

from .parameters import DEGREE, Parameters
from .quantise import Quantiser
from .seal_io import Form, Memory, form_of, load_seal, seal_context

__all__ = ["Cipher"]


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
        self._context = seal_context(parameters)
        self._secret, self._public = secret, public

    @classmethod
    def generate(cls, parameters: Parameters) -> tuple[bytes, bytes]:
        """Return a new secret key and, if the parameters want one, its public key."""
        seal, context = load_seal(), seal_context(parameters)
        maker = seal.KeyGenerator(context)
        public = b""
        with Memory() as memory:
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
            with Memory() as memory:
                return memory.load(key, self._context, data)
        except ValueError:
            raise ConfigError("The key does not belong to these parameters.") from None

    def encrypt(self, q: NDArray[np.unsignedinteger]) -> bytes:
        """Return the body of ``q``, shape (n,), each value below ``2**bits``."""
        seal, form, parts = self._seal, self._fresh, list[bytes]()
        with Memory() as memory:
            for plain in self._encoded(q):
                if self.parameters.public:
                    sealed = seal.Ciphertext()
                    self._encryptor.encrypt(plain, sealed)
                else:  # keeps the seed; the other form of this call does not
                    sealed = self._encryptor.encrypt_symmetric(plain)
                parts.append(form.shortened(memory.members(sealed)))
        return b"".join(parts)

    def _encoded(self, q: NDArray[np.unsignedinteger]) -> Iterator[Any]:
        p, per = self.parameters, self.parameters.per_ciphertext
        if p.scheme == "ckks":
            half = Quantiser(1.0, p.bits, p.most).half
        for start in range(0, len(q), per):
            block = q[start : start + per]
            if len(block) < per:
                block = np.concatenate([block, np.zeros(per - len(block), q.dtype)])
            plain = self._seal.Plaintext()
            if p.scheme == "bfv":
                high = np.left_shift(block[DEGREE:], p.lane, dtype=np.uint64)
                self._encoder.encode((block[:DEGREE] | high).tolist(), plain)
            else:
                pairs = np.subtract(block, half, dtype=np.float64).view(np.complex128)
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
        with Memory() as memory:
            for column in zip(
                *(self._split(b, n, self._fresh) for b in bodies), strict=True
            ):
                total = self._loaded(memory, column[0], self._fresh)
                for data in column[1:]:
                    sealed = self._loaded(memory, data, self._fresh)
                    evaluator.add_inplace(total, sealed)
                parts.append(self._summed.shortened(memory.members(total)))
        return b"".join(parts)

    def check(self, body: bytes | memoryview, n: int) -> None:
        """Refuse a body that cannot be added.

        Raises
        ------
        ProtocolError
            ``ciphertext``.
        """
        for data in self._split(body, n, self._fresh):
            self._fresh.coefficients(data)

    @property
    def _fresh(self) -> Form:
        """Of what nodes send."""
        return form_of(self.parameters, not self.parameters.public)

    @property
    def _summed(self) -> Form:
        """Of a sum: it has no seed."""
        return form_of(self.parameters, seeded=False)

    def _split(self, body: bytes | memoryview, n: int, form: Form) -> list[memoryview]:
        """Return the ciphertexts of a body, whose size must be right."""
        count, view = self.parameters.ciphertexts(n), memoryview(body)
        if len(view) != count * form.size:
            raise ProtocolError(
                "ciphertext", f"{len(view)} bytes, not {count * form.size}"
            )
        return [view[i * form.size :][: form.size] for i in range(count)]

    def _loaded(self, memory: Memory, data: memoryview, form: Form) -> Any:
        return form.loaded(memory, self._seal.Ciphertext(), self._context, data)

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
        per = self.parameters.per_ciphertext
        parts = self._split(body, n, self._summed)
        total = np.empty(len(parts) * per, np.int64)
        plain = self._seal.Plaintext()
        with Memory() as memory:
            for i, data in enumerate(parts):
                sealed = self._loaded(memory, data, self._summed)
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
