"""What clients of a secure aggregation send wrongly is dropped, and the sum goes on."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.fields import join, split
from strategies.secure.graph import MALICIOUS, SEMI_HONEST
from strategies.secure.identity import Identity
from strategies.secure.secagg import advert
from strategies.secure.secagg_client import Client
from strategies.secure.secagg_server import Server
from tests.strategies.secure.parties import (
    KEYS,
    THREATS,
    N,
    Sum,
    at,
    identity,
    mutated,
    refused,
    roster,
    session,
    signed,
)
from truststram.errors import ProtocolError


def dropped(server):
    return [(sender, error.code) for sender, error in server.dropped]


@pytest.mark.parametrize(
    ("code", "body"),
    {
        "fields": b"\0",
        "size": join([b"1"]),
        "unknown-key": advert(session(), Identity.generate("x"), KEYS[0], KEYS[1]),
        "signature": signed(5)[:-1] + b"\0",
        "signature ": signed(5, session(round=2)),
        "public-key": signed(5, mask=bytes(32)),
        "duplicate": signed(1, mask=KEYS[17], share=KEYS[18]),
    }.items(),
)
def test_forged_keys_are_dropped(code, body):
    server = Server(session(), roster(N))
    adverts = {i: signed(i) for i in range(4)}
    assert set(server.keys({**adverts, 5: body})) == set(range(4))
    assert dropped(server) == [(5, code.strip())]


def test_keys_that_were_advertised_before_are_dropped():
    server = Server(session(), roster(N))
    keys = {i: signed(i) for i in range(3)}
    keys |= {3: signed(3, mask=KEYS[0]), 4: signed(4, mask=KEYS[9], share=KEYS[9])}
    assert set(server.keys(keys)) == {0, 1, 2}
    assert dropped(server) == [(3, "duplicate-key"), (4, "duplicate-key")]


def test_proven_cheats_are_not_let_in():
    server = Server(session(), roster(N), {"node-002"})
    assert set(server.keys({i: signed(i) for i in range(4)})) == {0, 1, 3}
    assert dropped(server) == [(2, "dealer")]


def test_too_many_keys_end_the_round():
    about = session(max_cohort=4)
    keys = {i: signed(i, about) for i in range(5)}
    assert len(Server(about, roster(N)).keys(dict(list(keys.items())[:4]))) == 4
    with refused("cohort-size"):
        Server(about, roster(N)).keys(keys)


def test_a_client_is_in_no_cohort_that_is_too_large():
    s = Sum(N).keys()
    small = session(max_cohort=N - 1)
    client = Client(small, identity(0), roster(N))
    adverts = [client.keys(), *(signed(i, small) for i in range(1, N))]
    with refused("cohort-size"):
        client.shares(join(adverts))
    assert s.client(0).shares(s.messages[0])


def test_too_few_keys_end_the_round():
    with refused("cohort-size"):
        Server(session(), roster(N)).keys({i: signed(i) for i in range(2)})


def test_values_of_strangers_and_second_values_are_refused():
    s = at("shares").shares([6]).mask()
    row = s.masked[0]
    s.server.add(0, row)
    for sender in (0, 6, 99):
        with refused("not-in-sum"):
            s.server.add(sender, row)
    for wrong in (row[1:], row.astype(np.uint64), row.reshape(1, -1)):
        with refused("shape"):
            s.server.add(1, wrong)


@THREATS
@pytest.mark.parametrize("stage", ["shares", "consent", "unmask"])
def test_an_answer_of_rubbish_is_a_dropout(threat, stage):
    if threat == SEMI_HONEST and stage == "consent":
        return
    s = at(stage, threat)
    answers = s.ask(stage)
    answers |= {1: b"", 2: b"\xff" * 50, 99: answers[3]}
    if stage == "shares":
        s.messages = s.server.shares(answers)
        assert set(s.messages) == {0, 3, 4, 5, 6}
    elif stage == "consent":
        s.messages = s.server.consents(answers)
        assert set(s.messages) == {0, 3, 4, 5, 6}
        np.testing.assert_array_equal(s.unmask(), s.expected())
    else:
        np.testing.assert_array_equal(s.server.unmask(answers), s.expected())
    assert {sender for sender, _ in s.server.dropped} == {1, 2, 99}


@pytest.fixture(scope="module")
def moments():
    return {
        (threat, stage): at(stage, threat)
        for threat in (SEMI_HONEST, MALICIOUS)
        for stage in ("shares", "mask", "consent", "unmask")
    }


@THREATS
@given(stage=st.sampled_from(["shares", "mask", "unmask"]), seed=st.integers(0, 2**32))
def test_mutated_messages_raise_nothing_else(moments, threat, stage, seed):
    s = moments[threat, stage].copy()
    body = mutated(s.messages[0], random.Random(seed))
    try:
        getattr(s.client(0), "open" if stage == "mask" else stage)(body)
    except ProtocolError:
        pass  # refused
    else:  # what is accepted is harmless: sealed shares that do not open
        if (threat, stage) == (SEMI_HONEST, "unmask"):
            # Who is in a sum is the server's to say: at least half, with this client.
            [flags] = split(body, 1)
            assert len(flags) == N
            assert flags[0] == 1
            assert sum(flags) >= N / 2
        else:
            assert stage == "mask" or body == s.messages[0]


@THREATS
@pytest.mark.parametrize("stage", ["shares", "mask", "consent", "unmask"])
def test_an_empty_message_is_refused(moments, threat, stage):
    if threat == SEMI_HONEST and stage == "consent":
        return
    client = moments[threat, stage].copy().client(0)
    with pytest.raises(ProtocolError):
        getattr(client, "open" if stage == "mask" else stage)(b"")


@THREATS
@given(stage=st.sampled_from(["shares", "unmask"]), seed=st.integers(0, 2**32))
def test_mutated_answers_are_dropouts(moments, threat, stage, seed):
    s = moments[threat, stage].copy()
    answers = s.ask(stage)
    answers[1] = mutated(answers[1], random.Random(seed))
    if stage == "unmask":
        np.testing.assert_array_equal(s.server.unmask(answers), s.expected())
        return
    s.messages = s.server.shares(answers)
    try:
        total = s.mask().collect().consent().unmask()
    except ProtocolError as error:  # its commitment, or its hashes
        code = error.code
    else:
        code = "none"
        gone = [i for i in range(N) if i not in s.masked]
        np.testing.assert_array_equal(total, s.expected(gone))
    assert code in ("none", "dealer", "too-few-shares")
