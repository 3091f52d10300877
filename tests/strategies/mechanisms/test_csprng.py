from __future__ import annotations

import copy
import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from strategies.mechanisms import csprng
from strategies.mechanisms.csprng import BLOCK, Source
from tests.strategies.mechanisms.checks import LEVEL, follows

MANY = 200_000


class Constant(Source):
    """A source whose words are all the same."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    def words(self, n):
        return np.full(n, self.word, np.uint64)


def all_different(*words):
    together = np.concatenate(words)
    return len(np.unique(together)) == len(together)


def test_no_word_repeats_within_and_between_calls_and_sources():
    one, other = Source(), Source()
    drawn = [one.words(MANY), one.words(3), one.words(MANY), other.words(MANY)]
    drawn.append(one.block(BLOCK).view(np.uint64).copy())
    assert all_different(*drawn)


def test_that_test_sees_a_repeated_key():
    assert not all_different(Source.insecure(1).words(9), Source.insecure(1).words(9))


def test_a_new_key_after_enough_words(monkeypatch):
    monkeypatch.setattr(csprng, "WORDS_PER_KEY", BLOCK)
    for source in (Source(), Source.insecure(1)):
        assert all_different(*(source.words(BLOCK) for _ in range(5)))
    again = Source.insecure(1)
    monkeypatch.setattr(csprng, "WORDS_PER_KEY", 2**29)
    never = Source.insecure(1)
    assert np.array_equal(again.words(BLOCK), never.words(BLOCK))
    assert not np.array_equal(again.words(BLOCK), never.words(BLOCK))


def test_the_words_are_those_of_aes_in_counter_mode():
    seed = hashlib.sha256(b"insecure noise 5").digest()
    key = hashlib.sha256(seed + bytes(8)).digest()
    plain = b"".join(i.to_bytes(16, "big") for i in range(50))
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    expected = np.frombuffer(block.update(plain), np.uint64)
    assert np.array_equal(Source.insecure(5).words(100), expected)


def test_insecure_sources_repeat_by_seed_and_say_so():
    assert np.array_equal(Source.insecure(1).words(50), Source.insecure(1).words(50))
    assert not np.array_equal(
        Source.insecure(1).words(50), Source.insecure(2).words(50)
    )
    assert Source().secure
    assert not Source.insecure(1).secure


FORK = """
import os, sys
import numpy as np
from strategies.mechanisms.csprng import Source

def in_child(source):
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            found = source.words(50).tobytes()
        except RuntimeError as error:
            found = str(error).encode()
        os.write(write, found)
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(read, 4096)

source = Source()
source.words(7)
found = [np.frombuffer(in_child(source), np.uint64) for _ in range(2)]
found.append(source.words(50))
assert len(np.unique(np.concatenate(found))) == 150
insecure = Source.insecure(1)
assert b"after a fork" in in_child(insecure)
insecure.words(5)
"""


def test_a_fork_does_not_repeat_words(root):
    done = subprocess.run([sys.executable, "-c", FORK], cwd=root, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_key_does_not_leave():
    source = Source()
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            leave(source)
    assert repr(source) == "Source()"
    assert repr(Source.insecure(77)) == "Source.insecure(...)"


def test_uniforms_reach_both_ends_and_are_never_zero():
    none, all_ = Constant(0), Constant(2**64 - 1)
    assert none.uniforms(3).tolist() == [2.0**-53] * 3
    assert none.fine(3).tolist() == [2.0**-106] * 3
    assert all_.uniforms(3).tolist() == all_.fine(3).tolist() == [1.0] * 3


@pytest.mark.parametrize("kind", ["uniforms", "fine"])
def test_uniforms_are_uniform(kind):
    u = getattr(Source.insecure(3), kind)(MANY)
    assert follows(u, stats.uniform.cdf)
    assert not follows(u**1.5, stats.uniform.cdf)
    bits = (u * 2.0**53).astype(np.uint64)
    for bit in range(53):
        ones = int((bits >> np.uint64(bit) & np.uint64(1)).sum())
        assert stats.binomtest(ones, MANY).pvalue > LEVEL / 53
