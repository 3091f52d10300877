"""Masks cancel exactly, are uniform over the whole range and belong to one key."""

from __future__ import annotations

import os

import numpy as np
import pytest
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from strategies.secure.masks import (
    BLOCK,
    add_masks,
    agree,
    derive_key,
    public_key,
    word,
)
from truststram.errors import ProtocolError

WORDS = [np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8")]
KEY = bytes(range(32))
# The tests below call this chance: one in a million for each.
ALPHA = 1e-6


def mask(key, n, dtype="<u4", negative=False):
    values = np.zeros(n, dtype)
    add_masks(values, [(key, negative)])
    return values


def test_the_keystream_is_aes_256_in_counter_mode():
    # NIST's known answer: AES-256 of a block of zeros under a key of zeros.
    block = bytes.fromhex("dc95c078a2408989ad48a21492842087")
    assert mask(bytes(32), 4).tobytes() == block


@pytest.mark.parametrize("dtype", WORDS, ids=str)
@given(
    st.sampled_from([0, 1, 7, 4096, BLOCK // 8 - 1, BLOCK // 8 + 1, BLOCK + 3]),
    st.integers(0, 2**31),
    st.lists(st.booleans(), max_size=3),
)
def test_sums_are_those_of_integers_modulo_the_word(dtype, n, seed, signs):
    rng = np.random.default_rng(seed)
    bits = 8 * dtype.itemsize
    x = rng.integers(0, 2**bits, n, dtype=dtype.newbyteorder("="))
    keys = [rng.bytes(32) for _ in signs]
    y = x.copy()
    add_masks(y, zip(keys, signs, strict=True))
    for i in rng.integers(0, n, min(n, 20)):
        exact = int(x[i])
        for key, negative in zip(keys, signs, strict=True):
            exact += (-1) ** negative * int(mask(key, n, dtype)[i])
        assert int(y[i]) == exact % 2**bits
    add_masks(y, [(key, not sign) for key, sign in zip(keys, signs, strict=True)])
    np.testing.assert_array_equal(y, x)


def chi_square(counts):
    """Return the probability of counts at least that uneven under equal chances."""
    expected = counts.sum() / len(counts)
    return chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1)


@pytest.mark.parametrize("dtype", WORDS, ids=str)
def test_every_value_of_the_whole_range_is_equally_likely(dtype):
    # All 16-bit parts of a word; of 2^22 values each is expected 64 times.
    parts = mask(KEY, 2**22, dtype).view("<u2").reshape(-1, dtype.itemsize // 2)
    for part in parts.T:
        assert chi_square(np.bincount(part, minlength=2**16)) > ALPHA


def test_flowers_generator_fails_the_same_test():
    """Negative control: it never draws the largest value of a range."""
    drawn = pseudo_rand_gen(KEY, 4, [(4096,)])[0].astype(int)
    assert 3 not in drawn
    assert chi_square(np.bincount(drawn, minlength=4)) < ALPHA


def test_different_keys_give_different_masks_also_where_flowers_do_not():
    def folded(key):  # words of 32 bits in another order have the same XOR
        return key[4:8] + key[:4] + key[8:]

    flower = [pseudo_rand_gen(k, 2**24, [(64,)])[0] for k in (KEY, folded(KEY))]
    np.testing.assert_array_equal(*flower)  # 256 bits of key, 32 of them used
    assert (mask(KEY, 64) != mask(folded(KEY), 64)).any()
    keys = [os.urandom(32) for _ in range(2000)]
    keys += [bytes(31 * [0]) + bytes([1 << bit]) for bit in range(8)]
    assert len({mask(key, 4).tobytes() for key in keys}) == len(keys)


def test_masks_of_different_keys_are_unrelated():
    # Correlation of 2^20 independent words is normal with deviation 2^-10.
    one, two = (mask(key, 2**20).astype(float) for key in (KEY, KEY[::-1]))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 * 2**-10
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 5 * 2**-10


def test_masked_values_tell_nothing_of_the_values():
    x = np.arange(2**20, dtype="<u4")
    y = x.copy()
    add_masks(y, [(KEY, False)])
    assert abs(np.corrcoef(x, y.astype(float))[0, 1]) < 5 * 2**-10
    assert chi_square(np.bincount(y >> 16, minlength=2**16)) > ALPHA


def test_a_key_is_for_one_purpose():
    purposes = [(), (b"a",), (b"a", b""), (b"ab",), (b"a", b"b"), (b"b", b"a")]
    keys = {derive_key(KEY, *purpose) for purpose in purposes}
    assert len(keys) == len(purposes)
    assert derive_key(KEY, b"a") == derive_key(KEY, b"a")
    assert derive_key(KEY, b"a") != derive_key(KEY[::-1], b"a")


def test_agreement_is_that_of_rfc_7748():
    base = bytes([9]) + bytes(31)  # section 5.2: one iteration
    once = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert agree(base, base).hex() == once
    assert agree(KEY, public_key(base)) == agree(base, public_key(KEY))


@pytest.mark.parametrize("public", [bytes(32), bytes([1]) + bytes(31), b"short", b""])
def test_public_keys_with_a_known_secret_are_refused(public):
    with pytest.raises(ProtocolError, match="public-key"):
        agree(KEY, public)


@pytest.mark.parametrize(
    ("bits", "size"), [(1, 2), (16, 2), (17, 4), (32, 4), (33, 8), (64, 8)]
)
def test_the_smallest_word_that_holds_a_sum(bits, size):
    assert word(bits).itemsize == size


@pytest.mark.parametrize("bits", [0, -1, 65])
def test_there_is_no_word_for_other_sums(bits):
    with pytest.raises(ValueError, match="bits"):
        word(bits)
