"""A server that lies to a client of a secure aggregation gets no secret from it."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.secure.fields import join, split
from strategies.secure.graph import MALICIOUS, SEMI_HONEST
from strategies.secure.identity import DECRYPTOR, Identity, Member, Roster
from strategies.secure.secagg import advert
from strategies.secure.secagg_client import Client
from tests.strategies.secure.parties import (
    KEYS,
    SECRET,
    THREATS,
    N,
    Sum,
    at,
    identity,
    refused,
    roster,
    session,
    signed,
)


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
