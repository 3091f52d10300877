"""Homomorphic sums: exact up to the largest cohort, 128 bits, and hostile bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.he import Cipher
from strategies.secure.parameters import DEGREE, choose
from strategies.secure.quantise import Quantiser
from strategies.secure.seal_io import (
    Memory,
    _packed,
    _unpacked,
    form_of,
    load_seal,
    seal_context,
)
from strategies.secure.slots import Slots
from tests.strategies.secure.support import cipher
from truststram.errors import ConfigError, ProtocolError

CASES = {
    "bfv, 3": choose("bfv", 3),
    "bfv, 100": choose("bfv", 100),
    "bfv, 1000": choose("bfv", 1000),
    "bfv public, 100": choose("bfv", 100, public=True),
    "ckks, 100": choose("ckks", 100),
    "ckks, 1000": choose("ckks", 1000),
}
every_case = pytest.mark.parametrize("p", CASES.values(), ids=CASES)


@every_case
def test_the_parameters_have_128_bits_of_security(p):
    seal = load_seal()
    limit = seal.CoeffModulus.MaxBitCount(DEGREE, seal.SEC_LEVEL_TYPE.TC128)
    assert sum(p.primes) <= limit
    context = seal_context(p)  # SEAL checks the same when it makes a context
    assert context.parameters_set()
    assert not context.using_keyswitching() or p.public
    assert p.bits >= 12
    assert p.scheme == "ckks" or p.lane >= p.bits + (p.most - 1).bit_length()


@every_case
def test_the_sum_of_the_largest_cohort_is_exact(p):
    # Fresh encryptions, of extreme and of random values, up to 300 of them.
    rng, n = np.random.default_rng(p.most), p.per_ciphertext
    whole = cipher(p)
    count = min(p.most, 300)
    total, bodies = np.zeros(n, np.int64), []
    for i in range(count):
        q = rng.integers(0, 2**p.bits - 1, n, dtype=np.uint32)
        q[: n // 4] = 2**p.bits - 2
        q[-n // 4 :] = 0
        total += q
        bodies.append(whole.encrypt(q))
        assert len(bodies[i]) <= p.most_bytes(n)
    body = Cipher(p).add(bodies, n)  # the server: no key
    assert len(body) <= p.most_bytes(n, summed=True)
    np.testing.assert_array_equal(whole.decrypt(body, n, count), total)


@pytest.mark.parametrize("name", ["bfv, 100", "bfv public, 100"])
def test_bfv_has_room_left_at_the_largest_cohort(name):
    p = CASES[name]
    whole = cipher(p)
    q = np.full(10, 2**p.bits - 2, np.uint32)
    body = whole.add([whole.encrypt(q) for _ in range(p.most)], 10)
    with Memory() as memory:
        sealed = whole._loaded(memory, memoryview(body), whole._summed)
    assert whole._decryptor.invariant_noise_budget(sealed) >= 1


def test_ckks_noise_is_far_from_the_next_integer():
    # The bound is 9.3 standard deviations for half a step; 100 sums of 4096 places.
    p = CASES["ckks, 100"]
    whole, seal = cipher(p), load_seal()
    q = np.full(DEGREE, 3, np.uint32)
    body = whole.add([whole.encrypt(q) for _ in range(p.most)], DEGREE)
    plain = seal.Plaintext()
    with Memory() as memory:
        sealed = whole._loaded(memory, memoryview(body), whole._summed)
    whole._decryptor.decrypt(sealed, plain)
    values = np.array(whole._encoder.decode_complex(plain)).view(np.float64)
    noise = values - np.rint(values)
    assert 0 < noise.std() < 0.5 / 9.3


@pytest.mark.parametrize("n", [1, DEGREE, 2 * DEGREE + 1])
def test_any_length_is_packed(n):
    p = CASES["bfv, 100"]
    q = np.arange(n, dtype=np.uint32) % 1000
    whole = cipher(p)
    assert p.ciphertexts(n) == -(-n // (2 * DEGREE))
    np.testing.assert_array_equal(
        whole.decrypt(whole.add([whole.encrypt(q)], n), n, 1), q
    )


def test_too_many_clients_are_refused_when_parameters_are_chosen_and_when_adding():
    with pytest.raises(ConfigError, match=r"max-cohort"):
        choose("bfv", 10_000)
    p = choose("bfv", 3)
    body = cipher(p).encrypt(np.zeros(4, np.uint32))
    cipher(p).add([body] * 3, 4)
    with pytest.raises(ValueError, match="at most 3"):
        cipher(p).add([body] * 4, 4)


@pytest.mark.parametrize("name", ["bfv, 100", "ckks, 100"])
def test_a_hundred_wrong_keys_are_all_told_by_range_or_checksum(name):
    p = CASES[name]
    slots = Slots(Quantiser(1.0, p.bits, p.most), 20)
    rng = np.random.default_rng(1)
    q = slots.fill(np.zeros(20, np.float32), 5, {}, "r", rng)
    whole = cipher(p)
    body = whole.add([whole.encrypt(q)], slots.size)
    slots.read(whole.decrypt(body, slots.size, 1), 1, "r")
    for _ in range(100):
        other = Cipher(p, Cipher.generate(p)[0])
        with pytest.raises(ProtocolError, match=r"sum-range|checksum"):
            slots.read(other.decrypt(body, slots.size, 1), 1, "r")


def test_keys_and_ciphertexts_of_other_parameters_are_refused():
    ours, other = cipher(CASES["bfv, 100"]), cipher(CASES["ckks, 100"])
    body = other.encrypt(np.zeros(4, np.uint32))
    with pytest.raises(ProtocolError, match="ciphertext"):
        ours.add([body], 4)
    ours.check(ours.encrypt(np.zeros(4, np.uint32)), 4)
    with pytest.raises(ConfigError, match="does not belong"):
        Cipher(ours.parameters, other._secret).encrypt(np.zeros(4, np.uint32))
    total = ours.add([ours.encrypt(np.zeros(4, np.uint32))], 4)
    for missing in (Cipher(ours.parameters), Cipher(CASES["bfv public, 100"])):
        with pytest.raises(ConfigError, match="no key"):
            missing.encrypt(np.zeros(4, np.uint32))
        with pytest.raises(ConfigError, match="no secret key"):
            missing.decrypt(total, 4, 1)


@pytest.mark.parametrize("name", ["bfv, 100", "ckks, 100", "bfv public, 100"])
def test_two_thousand_mutated_bodies_are_refused_or_added(name):
    # Signatures keep outsiders away; this is what a signed, hostile body can do. SEAL's
    # own reader ends the process at some of these bytes.
    whole, n = cipher(CASES[name]), 100
    body = whole.encrypt(np.zeros(n, np.uint32))
    rng, outcomes = np.random.default_rng(8), {"added": 0, "ciphertext": 0}
    for i in range(700):
        data = bytearray(body)
        if i % 4 == 0:
            place = int(rng.integers(0, len(data)))
            data[place] ^= 1 << int(rng.integers(8))
        elif i % 4 == 1:  # the seed, or the end of the second polynomial
            data[-64:] = rng.bytes(64)
        elif i % 4 == 2:
            del data[int(rng.integers(0, len(data))) :]
        else:
            at, size = int(rng.integers(0, len(data))), int(rng.integers(1, 2_000))
            data[at : at + size] = rng.bytes(size)
        outcomes[added(whole, bytes(data), n)] += 1
    assert min(outcomes.values()) > 50


def added(whole, body, n):
    try:
        whole.add([body], n)
    except ProtocolError as error:
        return error.code
    return "added"


@given(st.binary(max_size=64))
def test_lengths_are_exact(data):
    whole = cipher(CASES["bfv, 100"])
    assert added(whole, data, 4) == "ciphertext"
    body = whole.encrypt(np.zeros(4, np.uint32))
    assert added(whole, body + data, 4) == ("ciphertext" if data else "added")
    with pytest.raises(ProtocolError, match="ciphertext"):
        whole.decrypt(body, 2**31 - 1, 1)


@pytest.mark.parametrize("bits", [36, 44, 48, 56, 60])
def test_coefficients_travel_without_their_leading_zeros(bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, 64, dtype=np.uint64)
    values[:3] = 0, 2**bits - 1, 2**32 - 1
    data = _packed(values, bits)
    assert len(data) == 64 * bits // 8
    np.testing.assert_array_equal(_unpacked(memoryview(data), 64, bits), values)


def test_a_coefficient_above_the_modulus_is_refused():
    p = CASES["bfv, 100"]
    whole, form = cipher(p), form_of(p, seeded=True)
    body = whole.encrypt(np.zeros(4, np.uint32))
    for value, found in ((form.modulus - 1, "added"), (form.modulus, "ciphertext")):
        values = _unpacked(memoryview(body), DEGREE, form.bits)
        values[7] = value
        changed = _packed(values, form.bits) + body[-64:]
        assert added(whole, changed, 4) == found


def test_a_seed_halves_a_ciphertext_and_the_sum_has_none():
    p = CASES["bfv, 100"]
    fresh, summed = form_of(p, seeded=True), form_of(p, seeded=False)
    assert fresh.size == DEGREE * 56 // 8 + 64
    assert summed.size == 2 * DEGREE * 56 // 8


def test_nothing_secret_is_shown():
    whole = cipher(CASES["bfv, 100"])
    assert repr(whole._secret[40:60])[2:-1] not in repr(whole) + str(whole)
