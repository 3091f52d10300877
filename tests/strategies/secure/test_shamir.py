"""Any t shares give the secret; t - 1 are as likely under every secret."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.shamir import PRIME, SHARE_BYTES, reconstruct, share

SECRETS = st.integers(0, 2**256 - 1)


@st.composite
def thresholds(draw):
    n = draw(st.integers(1, 12))
    return draw(st.integers(1, n)), n


@pytest.mark.parametrize("n", range(1, 8))
def test_every_set_of_enough_holders_gives_the_secret(n):
    for t in range(1, n + 1):
        secret = 2**255 + 12345 * t
        shares = dict(enumerate(share(secret, t, n), 1))
        for size in range(t, n + 1):
            for holders in combinations(shares, size):
                assert reconstruct({x: shares[x] for x in holders}) == secret


def dealt(secret, draws, n=4, prime=5):
    """Return the shares of a polynomial with these coefficients."""
    draw = iter(draws)
    t = 1 + len(draws)
    return share(secret, t, n, prime=prime, below=lambda _: next(draw))


@pytest.mark.parametrize("t", [2, 3])
def test_one_share_too_few_says_nothing(t):
    """Exact count over all polynomials: each view is equally likely for any secret."""
    polynomials = list(product(range(5), repeat=t - 1))
    for holders in combinations(range(4), t - 1):
        for secret in range(5):
            views = Counter(
                tuple(dealt(secret, draws)[x] for x in holders) for draws in polynomials
            )
            assert views == dict.fromkeys(polynomials, 1)


@pytest.mark.parametrize("t", [2, 3])
def test_enough_shares_say_all(t):
    """The same count with t shares: no view is possible under two secrets."""
    views = [
        {tuple(dealt(secret, draws)[:t]) for draws in product(range(5), repeat=t - 1)}
        for secret in range(5)
    ]
    assert len(set.union(*views)) == sum(map(len, views)) == 5**t


@given(SECRETS, thresholds(), st.randoms(use_true_random=False))
def test_any_holders_in_any_order(secret, threshold, random):
    t, n = threshold
    shares = list(enumerate(share(secret, t, n), 1))
    random.shuffle(shares)
    assert reconstruct(dict(shares[:t])) == secret
    assert all(0 <= y < PRIME and y.bit_length() <= 8 * SHARE_BYTES for _, y in shares)


@given(SECRETS, thresholds(), st.integers(1, PRIME - 1))
def test_a_wrong_share_gives_another_secret(secret, threshold, error):
    t, n = threshold
    shares = dict(enumerate(share(secret, t, n)[:t], 1))
    shares[1] = (shares[1] + error) % PRIME
    assert reconstruct(shares) != secret


@given(SECRETS, st.integers(2, 12))
def test_too_few_shares_give_another_secret(secret, t):
    # By chance the same with probability 2^-256.
    shares = dict(enumerate(share(secret, t, t)[: t - 1], 1))
    assert reconstruct(shares) != secret


def test_shares_are_fresh():
    assert share(1, 2, 3) != share(1, 2, 3)


def test_the_modulus_is_the_first_prime_above_256_bits():
    def is_prime(p):  # Miller and Rabin; wrong with probability 4^-40
        odd = p - 1
        twos = (odd & -odd).bit_length() - 1
        for base in range(2, 42):
            x = pow(base, odd >> twos, p)
            powers = [pow(x, 2**i, p) for i in range(twos)]
            if x != 1 and p - 1 not in powers:
                return False
        return True

    assert is_prime(PRIME)
    assert not any(is_prime(p) for p in range(2**256 + 1, PRIME, 2))


@pytest.mark.parametrize(
    ("secret", "t", "n"),
    [(-1, 1, 2), (PRIME, 1, 2), (1, 0, 2), (1, 3, 2), (1, 1, PRIME)],
)
def test_impossible_sharings(secret, t, n):
    with pytest.raises(ValueError, match="cannot share"):
        share(secret, t, n)
