"""Servers that lie and clients that forge: refused by name, and nothing is opened."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.fields import join, split
from strategies.secure.graph import MALICIOUS, SEMI_HONEST
from strategies.secure.identity import DECRYPTOR, Identity, Member, Roster
from strategies.secure.secagg import advert
from strategies.secure.secagg_client import Client
from strategies.secure.secagg_server import Server
from tests.strategies.secure.parties import SECRET, Sum, identity, roster, session
from truststram.errors import ProtocolError

N = 7
THREATS = pytest.mark.parametrize("threat", [SEMI_HONEST, MALICIOUS])
KEYS = [bytes([i]) * 32 for i in range(1, 20)]


def refused(code):
    return pytest.raises(ProtocolError, match=f"^{code}: ")


def signed(i, about=None, mask=None, share=None):
    """The advert of another client with keys that the server knows."""
    keys = mask or KEYS[i], share or KEYS[i + 8]
    return advert(about or session(), identity(i), *keys)


def cohort_with(change):
    """Let client 0 see a cohort of ``change(adverts)``, its own advert being first."""
    s = Sum(N).keys()
    adverts = split(s.messages[0], N)
    return s.client(0).shares(join(change(adverts)))


def test_an_unchanged_cohort_is_accepted():
    assert cohort_with(lambda adverts: adverts)


COHORTS = {
    "cohort-size": lambda a: a[:2],
    "own-keys": lambda a: [signed(0), *a[1:]],
    "cohort": lambda a: [a[1], a[0], *a[2:]],
    "fields": lambda a: [a[0], a[1], b"no list"],
    "size": lambda a: [a[0], a[1], join([b"", b"", b"", b""])],
    # Keys of its own in the place of a client's: the server cannot sign them.
    "signature": lambda a: [a[0], a[1], a[2][:36] + a[3][36:]],
    # Signed by the right client, for another model: the server told it another one.
    "signature ": lambda a: [a[0], a[1], signed(2, session(given=KEYS[0]))],
    # Signed in an earlier round, whose keys may be known by now.
    "signature  ": lambda a: [a[0], a[1], signed(2, session(round=0))],
    "unknown-key": lambda a: [
        a[0],
        a[1],
        advert(session(), Identity.generate("node-002"), KEYS[0], KEYS[1]),
    ],
    # A colluding client advertises another client's keys, or its own for both uses.
    "duplicate-key": lambda a: [a[0], a[1], signed(2, mask=split(a[1], 4)[1])],
    "duplicate-key ": lambda a: [a[0], a[1], signed(2, mask=KEYS[0], share=KEYS[0])],
    "public-key": lambda a: [a[0], a[1], signed(2, share=bytes(32))],
}


@pytest.mark.parametrize("code", COHORTS)
def test_other_cohorts_are_refused(code):
    with refused(code.strip()):
        cohort_with(COHORTS[code])


def test_a_client_counts_once():
    with refused("cohort"):
        cohort_with(lambda a: [a[0], a[1], a[1], signed(2)])


def test_only_clients_are_in_a_cohort():
    ids = [*map(identity, range(3)), Identity.derive(SECRET, "z", DECRYPTOR)]
    known = Roster(i.member for i in ids)
    client = Client(session(), ids[0], known)
    adverts = [
        client.keys(),
        signed(1),
        signed(2),
        advert(session(), ids[3], *KEYS[-2:]),
    ]
    with refused("role"):
        client.shares(join(adverts))


def test_one_key_has_one_vote():
    member = identity(1).member
    with pytest.raises(Exception, match="twice"):
        Roster([member, Member("other", member.role, member.public)])


def at(stage, threat=SEMI_HONEST):
    """Return a sum whose clients expect the message of ``stage``."""
    s = Sum(N, threat).keys()
    for name in ("shares", "mask", "consent"):
        if stage == name:
            break
        getattr(s, name)()
        if name == "mask":
            s.collect()
    return s


def flags(*names):
    return bytes(i in names for i in range(N))


EVERYBODY = flags(*range(N))


@pytest.mark.parametrize(
    ("code", "change"),
    {
        "too-few-left": lambda f, boxes: [flags(0, 1, 2), *boxes[:2]],
        "too-few-left ": lambda f, boxes: [flags(*range(1, N)), *boxes],
        "too-few-left  ": lambda f, boxes: [f, *boxes[1:]],
        "flags": lambda f, boxes: [f[1:], *boxes],
        "flags ": lambda f, boxes: [b"\2" + f[1:], *boxes],
    }.items(),
)
def test_who_dealt_shares_must_be_enough(code, change):
    s = at("mask")
    who, *boxes = split(s.messages[0], N)
    with refused(code.strip()):
        s.client(0).open(join(change(who, boxes)))


@THREATS
@pytest.mark.parametrize(
    ("code", "who"),
    {
        "too-few-left": flags(0, 1, 2),
        "survivors": flags(*range(1, N)),
        "flags": EVERYBODY[1:],
        "flags ": b"\1" * (N - 1) + b"\3",
        "fields": None,
    }.items(),
)
def test_who_is_in_the_sum_must_be_possible(threat, code, who):
    s = at("unmask" if threat == SEMI_HONEST else "consent", threat)
    ask = s.client(0).unmask if threat == SEMI_HONEST else s.client(0).consent
    with refused(code.strip()):
        ask(b"\0\0\1" if who is None else join([who]))


@THREATS
def test_who_never_dealt_shares_is_not_in_the_sum(threat):
    s = Sum(N, threat).keys().shares([6]).mask().collect()
    ask = s.client(0).unmask if threat == SEMI_HONEST else s.client(0).consent
    with refused("survivors"):
        ask(join([EVERYBODY]))


@THREATS
def test_nobody_is_asked_for_both_secrets_of_a_client(threat):
    """The seed's shares with 6 in the sum, the key's with 6 out of it: one of them."""
    s = at("consent", threat).consent()
    assert s.client(0).unmask(s.messages[0])
    with refused("stage"):
        s.client(0).unmask(join([flags(*range(N - 1))]))
    with refused("stage"):
        s.client(0).unmask(s.messages[0])


def test_an_answer_has_one_secret_of_each():
    s = at("unmask")
    held = split(s.clients[0]._kept.held, 100)
    both = {held[i]: held[i + 1] for i in range(0, len(held), 2)}
    who = flags(*range(N - 2))
    answer = split(s.client(0).unmask(join([who])), N)
    for i, value in enumerate(answer):
        key, seed = (
            both[f"node-{i:03d}".encode()][p] for p in (slice(33), slice(33, 66))
        )
        assert value == (seed if who[i] else key)
        assert key != seed


def unmask_malicious(change):
    """Let client 0 see (flags, signatures) that ``change`` made of the right ones."""
    s = at("consent", MALICIOUS)
    who, *signatures = split(s.consent().messages[0], 1 + N)
    return s.client(0).unmask(join(change(s, who, signatures)))


def other_consent(s, i):
    return identity(i).sign(s.server.cohort.consent(flags(*range(N - 1))))


def test_enough_signatures_are_accepted():
    assert unmask_malicious(lambda s, who, sigs: [who, *sigs])
    assert unmask_malicious(lambda s, who, sigs: [who, b"", b"", *sigs[2:]])


@pytest.mark.parametrize(
    ("code", "change"),
    {
        # Another list than the one that this client signed.
        "consent": lambda s, who, sigs: [flags(*range(N - 1)), *sigs],
        "signatures": lambda s, who, sigs: [who, b"", b"", b"", *sigs[3:]],
        "signatures ": lambda s, who, sigs: [who],
        "signatures  ": lambda s, who, sigs: [who, *sigs[:-1]],
        # One signature for all.
        "signature": lambda s, who, sigs: [who, *[sigs[1]] * N],
        # Others signed another list: the server told them so.
        "signature ": lambda s, who, sigs: [
            who,
            sigs[0],
            *(other_consent(s, i) for i in range(1, N)),
        ],
    }.items(),
)
def test_a_list_that_others_did_not_sign_opens_nothing(code, change):
    with refused(code.strip()):
        unmask_malicious(change)


def test_a_second_list_is_not_signed():
    s = at("consent", MALICIOUS)
    s.client(0).consent(join([EVERYBODY]))
    with refused("stage"):
        s.client(0).consent(join([flags(*range(N - 1))]))


@pytest.mark.parametrize("stage", ["shares", "open", "consent", "unmask"])
@pytest.mark.parametrize("now", ["keys", "shares", "mask", "unmask"])
def test_stages_come_in_their_order(stage, now):
    s = Sum(N) if now == "keys" else at(now)
    expected = "open" if now == "mask" else now
    if stage == expected:
        return
    with refused("stage"):
        getattr(s.client(0), stage)(b"")


def test_values_are_masked_once():
    s = at("mask")
    client = s.client(0)
    with refused("stage"):
        client.mask(np.zeros(3, np.uint32))
    client.open(s.messages[0])
    client.mask(np.zeros(3, np.uint32))
    with refused("stage"):
        client.mask(np.zeros(3, np.uint32))


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 2},
        {"job": "other"},
        {"given": KEYS[0]},
        {"min_cohort": 4},
        {"max_cohort": 50},
        {"colluders": 1},
    ],
)
def test_a_state_is_good_for_its_own_sum_only(changes):
    state = at("unmask").clients[0].state()
    with refused("session"):
        Client(session(**changes), identity(0), roster(N)).restore(state)
    with refused("session"):
        Client(session(MALICIOUS), identity(0), roster(N)).restore(state)


def test_a_sum_of_two_hides_nothing():
    with refused("cohort-size"):
        session(min_cohort=2)


def test_shares_for_another_client_do_not_open():
    s = at("mask")
    mine, other = (split(s.messages[i], N) for i in (0, 1))
    s.client(0).open(join([mine[0], other[1], *mine[2:]]))
    held = split(s.clients[0]._kept.held, 100)
    assert dict(zip(held[::2], held[1::2], strict=True))[b"node-001"] == b""


# What clients send.


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


def mutated(body, rng):
    """Return ``body`` with a few bytes changed, cut off or added."""
    data = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        what = rng.randrange(4)
        if what == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif what == 1:
            del data[place : place + rng.randrange(40)]
        elif what == 2:
            data[place:place] = rng.randbytes(rng.randrange(40))
        elif place + 4 <= len(data):
            data[place : place + 4] = rng.randbytes(4)
    return bytes(data)


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
        assert stage == "mask" or body == s.messages[0]


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
