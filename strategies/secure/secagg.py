"""Secure aggregation that survives dropouts: what both sides agree on.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS 2017 (sections 4 and 6, and figure 4 with its lines against active servers); for
many clients the neighbour graph of Bell et al., CCS 2020 (:mod:`.graph`). Differences:
keys are bound to job, round, model and settings by the signature that advertises them;
who left the sum is decided once a round, so that no client is ever asked for both of
another's secrets; every share has a public hash, so that a wrong one is known and left
out.

Mathematics (x_i, shape (n,), the integers of client i; everything modulo 2^k)
------------------------------------------------------------------------------
``y_i = x_i + PRG(b_i) + sum_(j neighbour, i < j) PRG(s_ij) - sum_(j < i) PRG(s_ij)``
with a seed b_i of its own and a key s_ij that only i and j know (X25519). In a sum of
all y_i the keystreams of pairs cancel. Shares of b_i and of the private key behind all
s_ij are with i's neighbours; of clients that are in the sum b_i is opened, of those
that left before they sent y_i the private key, of nobody both.

Stages, from a client's view
----------------------------
``keys``     sends two fresh public keys, signed                        -> cohort U1
``shares``   gets all keys; sends sealed shares of its secrets          -> U2
``mask``     gets the shares it shall keep; sends y_i                   -> U3
``consent``  (malicious only) gets U3; sends its signature of it
``unmask``   gets U3 (and the signatures); sends one share per neighbour

A client that is silent in a stage has dropped out. The sum is over U3.

Guarantees
----------
For one sum, with t of :func:`.graph.threshold`. Semi-honest: towards a server that
follows the protocol, together with fewer than t clients of the cohort, an honest
client's integers are hidden but for the sum over all honest clients of U3; the sum is
exact if t clients answer every stage. Malicious: the same towards a server that
deviates in any way, together with at most :func:`.graph.colluders` clients, given that
the roster lists no key that the server holds; it may still make the round fail. With
more than 100 clients, none assumed to collude, and a semi-honest server, t is counted
in a neighbourhood, and the statements hold for the numbers and probabilities of
:mod:`.graph`. In all cases U3 has at least ``min_cohort`` clients or no honest client
opens anything.

For all sums of one model (:mod:`.journal`): an honest client consents to or opens one
U3, whatever rounds and runs are repeated. Malicious: it also masks only for cohorts
whose quorums must meet in an honest client (:func:`.graph.quorums_meet`), so two
different U3 that share an honest client cannot both be opened. Semi-honest: opening two
takes, beyond the colluders, t honest clients that opened the one and t' others that
opened the other: a server that died while it opened a sum, in a round that half of the
cohort did not see the end of and the other half does not take part in opening again.
Towards a semi-honest server a round that failed before its sum was opened may be
repeated with any clients; sums of different models may have different clients.

Not hidden: who takes part, when, and the sum itself. Not prevented: a client that
contributes nonsense, or that deals shares of something else than it published, which
makes the round fail; the server then knows who it was and leaves it out. A server that
gives some clients another model, configuration or job than others (:mod:`.given`) has
adverts that are not signed for one session, and no client goes on with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from truststram.errors import ProtocolError

from .fields import join, split
from .graph import colluders, degree, neighbours, threshold
from .identity import CLIENT, Identity, Roster
from .masks import KEY_BYTES, agree, derive_key

__all__ = ["MAX_CLIENTS", "STAGES", "Cohort", "Session", "advert", "agree_on_mask"]

STAGES = ("keys", "shares", "mask", "consent", "unmask")
# Every client gets every key, and in a complete graph deals a share to every other.
MAX_CLIENTS = 1000
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Session:
    """One sum: what it is about; a client's keys are good for nothing else.

    Parameters
    ----------
    job : str
        The job's id.
    round : int
    given : bytes
        SHA-256 of what all clients must have in common: the model that the updates
        start from, everything else that they are given to train with, and the job.
    threat : str
        ``semi-honest`` or ``malicious``.
    min_cohort : int
        Smallest number of clients in a sum, at least 3: of two, each knows the other's.
    max_cohort : int
        Largest number of clients in a cohort.
    colluders : int
        Clients that are assumed to collude with the server (:func:`.graph.degree`).
    """

    job: str
    round: int
    given: bytes
    threat: str
    min_cohort: int
    max_cohort: int = MAX_CLIENTS
    colluders: int = 0

    def __post_init__(self) -> None:
        if self.min_cohort < 3:
            raise ProtocolError("cohort-size", "a sum of fewer than 3 hides nothing")

    @cached_property
    def tag(self) -> bytes:
        """32 bytes that only equal sessions share."""
        sizes = f"{self.min_cohort} {self.max_cohort} {self.colluders}"
        numbers = f"{self.round} {sizes} {self.threat}"
        body = join([self.job.encode(), numbers.encode(), self.given])
        return hashlib.sha256(b"truststram secagg 1" + body).digest()

    def check_size(self, clients: int) -> None:
        """Refuse a cohort of so many clients, if it is too small or too large.

        Too small is also one in which the assumed colluders could open what others
        masked (:func:`.graph.colluders`).

        Raises
        ------
        ProtocolError
            ``cohort-size``.
        """
        if not self.min_cohort <= clients <= self.max_cohort:
            sizes = f"from {self.min_cohort} to {self.max_cohort} are allowed"
            raise ProtocolError("cohort-size", f"{clients} clients, {sizes}")
        if colluders(clients, self.threat) < self.colluders:
            text = f"{clients} clients do not bear {self.colluders} that collude"
            raise ProtocolError("cohort-size", text)


def advert(session: Session, identity: Identity, mask: bytes, share: bytes) -> bytes:
    """Return a client's public keys for one sum, signed.

    Fields: identity key, key of the masks, key of the sealed shares (32 bytes each),
    signature (64).
    """
    signature = identity.sign(join([b"advert", session.tag, mask, share]))
    return join([identity.member.public, mask, share, signature])


class Cohort:
    """The clients of a sum and their keys, in the order of their names.

    Parameters
    ----------
    body : bytes
        All adverts, in the order of the clients' names. Untrusted.
    session : Session
    roster : Roster

    Raises
    ------
    ProtocolError
        Whatever is wrong with the body: ``cohort-size``, ``cohort`` (order, a client
        twice), ``duplicate-key``, ``role`` and what :class:`.identity.Roster` raises.
    """

    def __init__(self, body: bytes, session: Session, roster: Roster) -> None:
        parts = split(body, MAX_CLIENTS)
        session.check_size(len(parts))
        self.body, self.session = body, session
        # What all that belongs to this very cohort is bound to.
        self.tag = hashlib.sha256(join([session.tag, body])).digest()
        self.mask_key: dict[str, bytes] = {}
        self.share_key: dict[str, bytes] = {}
        self.identity: dict[str, bytes] = {}
        for part in parts:
            self._read(part, roster)
        self.names = list(self.identity)
        if self.names != sorted(self.names) or len(self.names) != len(parts):
            raise ProtocolError("cohort", "not in the order of the clients' names")
        keys = [*self.mask_key.values(), *self.share_key.values()]
        if len(set(keys)) != len(keys):
            raise ProtocolError("duplicate-key", "a key was advertised twice")

    def _read(self, part: bytes, roster: Roster) -> None:
        name, mask, share = read_advert(part, self.session, roster)
        self.identity[name] = part[4 : 4 + KEY_BYTES]
        self.mask_key[name], self.share_key[name] = mask, share

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def neighbours(self) -> dict[str, list[str]]:
        """The neighbours of every client."""
        count = degree(len(self), self.session.threat, self.session.colluders)
        return neighbours(self.names, self.tag, count)

    def holders(self, name: str) -> list[str]:
        """Return who holds shares of a client's secrets: itself and its neighbours."""
        return sorted([name, *self.neighbours[name]])

    def needed(self, name: str) -> int:
        """Return how many holders can open one of a client's secrets."""
        return threshold(len(self.neighbours[name]) + 1, self.session.threat)

    @property
    def needed_of_all(self) -> int:
        """How many clients of the cohort must be left in the end."""
        return max(self.session.min_cohort, threshold(len(self), self.session.threat))

    def flags(self, chosen: Iterable[str]) -> bytes:
        """Return one byte for each client: 1 if it is among ``chosen``."""
        kept = set(chosen)
        return bytes(name in kept for name in self.names)

    def chosen(self, flags: bytes) -> list[str]:
        """Return the names that untrusted ``flags`` stand for, in order."""
        if len(flags) != len(self) or set(flags) - {0, 1}:
            raise ProtocolError("flags", f"not one bit for each of {len(self)} clients")
        return [n for n, flag in zip(self.names, flags, strict=True) if flag]

    def left(self, flags: bytes) -> list[str]:
        """Return the clients in the sum, if there are enough of them."""
        names = self.chosen(flags)
        if len(names) < self.needed_of_all:
            raise ProtocolError(
                "too-few-left", f"{len(names)} clients, at least {self.needed_of_all}"
            )
        return names

    def consent(self, flags: bytes) -> bytes:
        """Return what a client signs to say that ``flags`` are who is in the sum."""
        return join([b"consent", self.tag, flags])

    def own_mask(self, name: str, seed: bytes) -> tuple[bytes, bool]:
        """Return a client's own mask, for :func:`.masks.add_masks`."""
        return derive_key(seed, b"own mask", self.tag, name.encode()), False

    def commitment(self, name: str, seed: bytes) -> bytes:
        """Return a hash that a seed of 256 random bits can be checked against."""
        return hashlib.sha256(join([b"seed", self.tag, name.encode(), seed])).digest()

    def check(self, share: bytes) -> bytes:
        """Return the public hash of a share, by which a wrong one is known."""
        return hashlib.sha256(self.tag + share).digest()

    def sealing_key(self, private: bytes, other: str, *way: str) -> bytes:
        """Return the key of what goes one ``way``, from name to name."""
        secret = agree(private, self.share_key[other])
        return derive_key(secret, b"share", self.tag, *(n.encode() for n in way))


def read_advert(
    part: bytes, session: Session, roster: Roster
) -> tuple[str, bytes, bytes]:
    """Return (name, key of the masks, key of the shares) of an untrusted advert.

    Raises
    ------
    ProtocolError
        ``fields``, ``size``, ``role``, or what :meth:`.identity.Roster.verify` raises.
    """
    fields = split(part, 4)
    if [len(x) for x in fields] != [*[KEY_BYTES] * 3, SIGNATURE_BYTES]:
        raise ProtocolError("size", "not three keys and a signature")
    public, mask, share, signature = fields
    signed = join([b"advert", session.tag, mask, share])
    member = roster.verify(public, signature, signed)
    if member.role != CLIENT:
        raise ProtocolError("role", "not a client by the roster")
    return member.name, mask, share


def agree_on_mask(
    cohort: Cohort, name: str, private: bytes, other: str
) -> tuple[bytes, bool]:
    """Return the mask that ``name`` shares with ``other``: (key, negative).

    The other one gets the same key with the other sign.
    """
    secret = agree(private, cohort.mask_key[other])
    pair = [n.encode() for n in sorted([name, other])]
    return derive_key(secret, b"pair mask", cohort.tag, *pair), name > other
