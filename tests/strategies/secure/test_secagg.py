"""Secure aggregation: exact sums whoever drops out, and no second secret for anyone."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.secure import masks, secagg
from strategies.secure.graph import MALICIOUS, SEMI_HONEST, threshold
from strategies.secure.identity import Roster
from tests.strategies.secure.parties import SIZE, Sum
from truststram.errors import ProtocolError

N = 10
STAGES = ("keys", "shares", "mask", "unmask")


def subsets(most):
    return [s for size in range(most + 1) for s in combinations(range(N), size)]


@pytest.fixture(scope="module")
def _fast():
    """Compute every X25519 secret and check every signature once."""
    patch = pytest.MonkeyPatch()
    agree, verify = cache(masks.agree), cache(Roster.verify)
    patch.setattr(secagg, "agree", agree)
    patch.setattr(Roster, "verify", verify)
    yield
    patch.undo()


def test_every_dropout_set_is_counted():
    assert len(subsets(N // 2)) == 638


@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize(("threat", "most"), [(SEMI_HONEST, 5), (MALICIOUS, 3)])
def test_the_sum_is_exact_for_every_dropout_set_at_every_stage(threat, most):
    """All sets of up to half of ten clients (below a third: malicious server)."""
    advertised = Sum(N, threat, kept=True).keys()
    dealt = advertised.ask("shares")
    masked = advertised.copy().deal(dealt).mask()
    for gone in subsets(most):
        left = masked.expected(gone)
        before = advertised.copy().deal(dealt, gone).mask().collect()
        np.testing.assert_array_equal(before.consent().unmask(), left)
        silent = masked.copy().collect(gone)
        assert silent.server.count == N - len(gone)
        np.testing.assert_array_equal(silent.copy().consent().unmask(), left)
        late = masked.copy().collect().consent().unmask(gone)
        np.testing.assert_array_equal(late, masked.expected())
        if threat == MALICIOUS:
            later = masked.copy().collect().consent(gone).unmask()
            np.testing.assert_array_equal(later, masked.expected())


@pytest.mark.parametrize("threat", [SEMI_HONEST, MALICIOUS])
@settings(max_examples=10)
@given(when=st.lists(st.sampled_from(["stay", *STAGES]), min_size=N, max_size=N))
def test_the_sum_is_exact_when_some_leave_at_each_stage(threat, when):
    gone = {s: [i for i, w in enumerate(when) if w == s] for s in STAGES}
    n = N - len(gone["keys"])
    left = n - len(gone["shares"]) - len(gone["mask"])
    t = threshold(n, threat)
    if left - len(gone["unmask"]) >= t and left >= 3:
        total = Sum(N, threat).run(gone)
        out = [*gone["keys"], *gone["shares"], *gone["mask"]]
        np.testing.assert_array_equal(total, Sum(N, threat).expected(out))
    else:
        with pytest.raises(ProtocolError) as error:
            Sum(N, threat).run(gone)
        assert error.value.code in ("cohort-size", "too-few-left", "too-few-shares")


@pytest.mark.parametrize("n", [3, 4, 22, 40])
def test_other_numbers_of_clients(n):
    gone = {"mask": [0], "unmask": [1]} if n > 4 else {}
    np.testing.assert_array_equal(
        Sum(n).run(gone), Sum(n).expected(gone.get("mask", ()))
    )


@pytest.mark.parametrize(("threat", "gone"), [(SEMI_HONEST, 6), (MALICIOUS, 4)])
@pytest.mark.parametrize("stage", ["shares", "mask", "unmask"])
def test_one_dropout_more_and_nothing_is_opened(threat, gone, stage):
    with pytest.raises(ProtocolError, match="too-few"):
        Sum(N, threat).run({stage: range(gone)})


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
def test_words_of_other_sizes(dtype):
    s = Sum(4)
    s.values = {i: np.full(SIZE, 2**15 + i, dtype) for i in range(4)}
    np.testing.assert_array_equal(s.run(), np.full(SIZE, 4 * 2**15 + 6).astype(dtype))


def test_the_same_values_are_masked_differently_every_time():
    runs = [Sum(4).keys().shares().mask().masked for _ in range(2)]
    rows = np.array([row for run in runs for row in run.values()])
    assert len({row.tobytes() for row in rows}) == 8
    zeros = Sum(4)
    zeros.values = {i: np.zeros(SIZE, np.uint32) for i in range(4)}
    assert np.all(list(zeros.keys().shares().mask().masked.values()))


def test_what_the_server_sees_of_one_client_is_uniform():
    """Chi-square of the high bytes of zeros, masked; false alarm one in a million."""
    s = Sum(3)
    s.values = {i: np.zeros(2**18, np.uint32) for i in range(3)}
    counts = np.bincount(s.keys().shares().mask().masked[0] >> 24, minlength=256)
    statistic = ((counts - 2**10) ** 2 / 2**10).sum()
    assert statistic < 255 + 4.9 * np.sqrt(2 * 255) + 11


def test_a_share_that_was_tampered_with_is_known_and_left_out():
    s = Sum(N).keys().shares().mask().collect([0])
    answers = s.ask("unmask")
    wrong = bytearray(answers[3])
    wrong[-1] ^= 1
    np.testing.assert_array_equal(
        s.server.unmask({**answers, 3: bytes(wrong)}), s.expected([0])
    )
    # The holder, or a dealer that sealed another share than it published: nobody knows.
    assert s.server.dropped == []


def test_a_dealer_of_bad_shares_stops_nobody_while_it_stays():
    s = Sum(N).keys()
    answers = s.ask("shares")
    wrong = bytearray(answers[2])
    wrong[40:60] = bytes(20)  # what the first holder gets
    s.messages = s.server.shares({**answers, 2: bytes(wrong)})
    np.testing.assert_array_equal(s.mask().collect().unmask(), s.expected())
    assert s.server.dropped == []  # the holder did nothing wrong


def test_a_dealer_whose_shares_are_of_another_secret_is_named():
    s = Sum(N).keys()
    answers = s.ask("shares")
    wrong = answers[2][:4] + bytes(32) + answers[2][36:]  # its commitment
    s.messages = s.server.shares({**answers, 2: wrong})
    with pytest.raises(ProtocolError, match=r"dealer.*node-002"):
        s.mask().collect().unmask()
    assert s.server._cheats == {"node-002"}


def test_private_keys_are_forgotten_once_they_are_used():
    s = Sum(4).keys()
    secrets = [s.clients[0]._kept.mask, s.clients[0]._kept.share]
    s.shares()
    secrets.append(s.clients[0]._kept.seed)
    assert all(secret in s.clients[0].state() for secret in secrets)
    s.mask()
    assert not any(secret in s.clients[0].state() for secret in secrets)
    s.collect().unmask()
    assert s.clients[0]._kept.held == b""
