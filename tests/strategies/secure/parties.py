"""A whole secure aggregation in memory, for tests of it: a server and its clients."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy, deepcopy

import numpy as np
import pytest

from strategies.secure.graph import MALICIOUS, SEMI_HONEST
from strategies.secure.identity import Identity, Roster
from strategies.secure.secagg import Session, advert
from strategies.secure.secagg_client import Client
from strategies.secure.secagg_server import Server
from truststram.errors import ProtocolError

SECRET = b"only for simulated nodes........"
SIZE = 5
N = 7
THREATS = pytest.mark.parametrize("threat", [SEMI_HONEST, MALICIOUS])
KEYS = [bytes([i]) * 32 for i in range(1, 20)]


def identity(number: int) -> Identity:
    return Identity.derive(SECRET, f"node-{number:03d}")


def roster(n: int) -> Roster:
    return Roster(identity(i).member for i in range(n))


def session(threat: str = SEMI_HONEST, **changes) -> Session:
    about = {"job": "job", "round": 1, "given": bytes(32), "min_cohort": 3}
    return Session(**{**about, "threat": threat, **changes})


class Sum:
    """One sum of ``n`` clients whose senders are their numbers.

    A stage is played by everybody who is not in ``gone`` and got a message of the stage
    before. Every stage restores the clients from their saved states, as a deployment
    does, unless they are ``kept``.
    """

    def __init__(self, n: int, threat: str = SEMI_HONEST, seed: int = 1, kept=False):
        self.session, self.roster = session(threat), roster(n)
        self.server = Server(self.session, self.roster)
        self.clients = {i: self.fresh(i) for i in range(n)}
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, 2**32, (n, SIZE), dtype=np.uint32)
        self.values = dict(enumerate(rows))
        self.messages: dict[int, bytes] = {}
        self.masked: dict[int, np.ndarray] = {}
        self.kept = kept

    def fresh(self, i: int) -> Client:
        return Client(self.session, identity(i), self.roster)

    def copy(self) -> Sum:
        """Return the same moment of the sum, to go on differently."""
        other = copy(self)
        other.server = copy(self.server)
        for name, value in vars(self.server).items():
            if isinstance(value, (dict, set, list, np.ndarray)):
                setattr(other.server, name, copy(value))
        other.clients = {i: copy(client) for i, client in self.clients.items()}
        for client in other.clients.values():
            client._kept = copy(client._kept)
        other.masked = deepcopy(self.masked)
        return other

    def client(self, i: int) -> Client:
        if not self.kept:
            self.clients[i] = self.fresh(i).restore(self.clients[i].state())
        return self.clients[i]

    def ask(self, stage: str, gone: Collection[int] = ()) -> dict[int, bytes]:
        """Return what clients answer to the server's messages of a stage."""
        return {
            i: getattr(self.client(i), stage)(message)
            for i, message in self.messages.items()
            if i not in gone
        }

    def keys(self, gone=()):
        replies = {i: self.client(i).keys() for i in self.clients if i not in gone}
        self.messages = self.server.keys(replies)
        return self

    def shares(self, gone=()):
        return self.deal(self.ask("shares", gone))

    def deal(self, answers: Mapping[int, bytes], gone=()):
        kept = {i: answer for i, answer in answers.items() if i not in gone}
        self.messages = self.server.shares(kept)
        return self

    def mask(self, gone=()):
        for i, message in self.messages.items():
            if i not in gone:
                client, values = self.client(i), self.values[i].copy()
                client.open(message)
                client.mask(values)
                self.masked[i] = values
        return self

    def collect(self, gone=()):
        for i, values in self.masked.items():
            if i not in gone:
                self.server.add(i, values)
        self.messages = self.server.survivors()
        return self

    def consent(self, gone=()):
        if self.session.threat == MALICIOUS:
            self.messages = self.server.consents(self.ask("consent", gone))
        return self

    def unmask(self, gone=()):
        return self.server.unmask(self.ask("unmask", gone))

    def run(self, gone: Mapping[str, Collection[int]] = {}):
        """Return the sum, with some clients gone at each stage."""
        self.keys(gone.get("keys", ())).shares(gone.get("shares", ()))
        self.mask(gone.get("mask", ())).collect().consent(gone.get("consent", ()))
        return self.unmask(gone.get("unmask", ()))

    def expected(self, gone: Collection[int] = ()):
        """Return the exact sum of those who are not gone."""
        rows = [v for i, v in self.values.items() if i not in gone]
        return np.sum(rows, axis=0, dtype=np.uint32)


def refused(code):
    return pytest.raises(ProtocolError, match=f"^{code}: ")


def signed(i, about=None, mask=None, share=None):
    """The advert of another client with keys that the server knows."""
    keys = mask or KEYS[i], share or KEYS[i + 8]
    return advert(about or session(), identity(i), *keys)


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
