"""Parameters of homomorphic encryption: as fine a grid as the number of clients allows.

Mathematics (N slots, n values q < 2**bits, at most ``most`` clients)
---------------------------------------------------------------------
*BFV* has N slots of integers modulo a prime t. Two values share a slot: ``lo + hi *
2**lane``, with ``lane >= bits + ceil(log2 most)``, so that no sum reaches into the
neighbour.

*CKKS* has N/2 complex slots: two centred values, real and imaginary part, times
``2**scale``. Its result has noise, and noise tells of the key (Li and Micciancio,
"On the Security of Homomorphic Encryption on Approximate Numbers", EUROCRYPT 2021).
Here values are integers and the scale is so large that rounding finds the exact sum:
what is released is the integer, as in BFV, and no noise.

Noise: an encryption under the secret key adds to each coefficient a centred binomial
value of variance 10.5; one under a public key, after SEAL has switched to the smaller
modulus, (1 + 2N/3)/12. Their sum over the clients stays below ``TAIL`` standard
deviations but for a chance of 2**-61 a coefficient (both are sub-Gaussian), and the
parameters leave that much room. A slot of CKKS is a sum over N coefficients, its real
part having N/2 times their variance.

Security: 128 bits by SEAL's own bound (the table of the homomorphic encryption
standard), checked when a context is made.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from truststram.errors import ConfigError

from .wire import digest

__all__ = ["DEGREE", "Parameters", "choose"]

DEGREE = 4096
TAIL = 9.3
BINOMIAL = 10.5
# The second prime, for public keys only, serves to reduce the noise of encryption.
BFV_PRIME, SPECIAL_PRIME = 56, 53
CKKS_BITS = 20
MIN_BITS, MAX_BITS = 12, 24


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
        # One polynomial is a seed unless the ciphertext is a sum or of a public key.
        polynomials = 2 if summed or self.public else 1
        return self.ciphertexts(n) * (polynomials * self.primes[0] * DEGREE // 8 + 64)

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
        # A multiple of 4, as coefficients travel.
        prime = 4 * math.ceil(math.log2(2.05 * largest) / 4)
        found = Parameters(scheme, False, most, CKKS_BITS, (prime,), scale=scale)
    else:
        switched = (1 + 2 * DEGREE / 3) / 12
        deviation = math.sqrt(most * ((switched if public else BINOMIAL) + 1 / 12))
        room = math.floor(BFV_PRIME - 1.02 - math.log2(TAIL * deviation))
        lane = room // 2
        bits = min(lane - (most - 1).bit_length(), MAX_BITS)
        primes = (BFV_PRIME, SPECIAL_PRIME) if public else (BFV_PRIME,)
        found = Parameters(scheme, public, most, bits, primes, plain=2 * lane)
    if found.bits < MIN_BITS or max(found.primes) > 60:
        raise ConfigError(
            f"{scheme} cannot add {most} clients with {MIN_BITS} bits a value. Lower "
            "secure.max-cohort, or use secure.scheme = secagg."
        )
    return found
