"""A client of one secure aggregation, as a state machine: bytes in, bytes out.

See :mod:`.secagg` for the protocol. Everything that comes from the server is untrusted
and bounded; whatever is not as it must be raises ``ProtocolError`` and the client has
left the sum. Stages are answered in their order and once, whatever is repeated.

Between stages the state is a few kilobytes (:meth:`Client.state`). It holds secrets of
this sum only; the private keys and the seed are gone as soon as the masked update is
made, so what is kept then opens nothing of this client's own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from truststram.errors import ProtocolError

from .fields import join, split
from .graph import MALICIOUS, threshold
from .identity import Identity, Roster
from .masks import KEY_BYTES, add_masks, public_key
from .secagg import (
    MAX_CLIENTS,
    STAGES,
    Cohort,
    Session,
    advert,
    agree_on_mask,
)
from .shamir import SHARE_BYTES, share

__all__ = ["Client"]

# A key of AES-GCM seals one message.
NONCE = bytes(12)
END = b"end"


@dataclass
class _State:
    """What a client keeps from stage to stage; byte strings only.

    ``dealt`` lists (holder's name, its two shares) as fields; ``flags`` is who was
    there when the update was masked and ``left`` who is in the sum.
    """

    next: bytes = b"keys"
    mask: bytes = b""
    share: bytes = b""
    seed: bytes = b""
    cohort: bytes = b""
    held: bytes = b""
    flags: bytes = b""
    left: bytes = b""


class Client:
    """One client in one sum.

    Parameters
    ----------
    session : Session
        As this client understands it: its own job, the model it will train.
    identity : Identity
    roster : Roster
        The clients that may be in the sum; this one among them.
    """

    def __init__(self, session: Session, identity: Identity, roster: Roster) -> None:
        self.session, self.name = session, identity.member.name
        self._identity, self._roster = identity, roster
        self._kept = _State()
        self._cohort: Cohort | None = None

    def state(self) -> bytes:
        """Return what :meth:`restore` needs. Secret."""
        values = [getattr(self._kept, field.name) for field in fields(_State)]
        return join([self.session.tag, *values])

    def restore(self, state: bytes) -> Client:
        """Continue from a state of this client in a sum of the same session.

        Raises
        ------
        ProtocolError
            ``session``, if it is of another sum; ``fields``, if it is no state.
        """
        size = 1 + len(fields(_State))
        tag, *values = split(state, size, size)
        if tag != self.session.tag:
            raise ProtocolError("session", "this node has begun another sum")
        self._kept = _State(*values)
        return self

    @property
    def done(self) -> bool:
        """Whether there is no further stage, and so nothing to keep."""
        return self._kept.next == END

    @property
    def cohort(self) -> Cohort:
        """The clients of the sum; known from the stage ``shares`` on."""
        if self._cohort is None:
            self._cohort = Cohort(self._kept.cohort, self.session, self._roster)
        return self._cohort

    @property
    def left(self) -> list[str]:
        """Who is in the sum, as this client has consented to or is about to open."""
        return self.cohort.left(self._kept.left)

    def keys(self) -> bytes:
        """Make fresh keys; return the advert of their public halves."""
        self._enter("keys")
        self._kept.mask = os.urandom(KEY_BYTES)
        self._kept.share = os.urandom(KEY_BYTES)
        return self._advert()

    def shares(self, body: bytes) -> bytes:
        """Check everybody's keys; return this client's secrets in sealed shares.

        Parameters
        ----------
        body : bytes
            All adverts (:class:`.secagg.Cohort`).

        Returns
        -------
        bytes
            Fields: commitment to the seed; for each holder in order its sealed shares
            (empty: this client's own); for each holder in order the hashes of both.

        Raises
        ------
        ProtocolError
            If the cohort is too small, not signed by members of the roster, or does
            not have this client's own keys.
        """
        self._enter("shares")
        self._kept.cohort, self._cohort = body, None
        cohort = self.cohort
        if self._advert() not in split(body, MAX_CLIENTS):
            raise ProtocolError("own-keys", "the cohort has other keys of this client")
        self._kept.seed = os.urandom(KEY_BYTES)
        holders = cohort.holders(self.name)
        secrets = (self._kept.mask, self._kept.seed)
        dealt = [
            share(int.from_bytes(x, "big"), cohort.needed(self.name), len(holders))
            for x in secrets
        ]
        pairs = [
            tuple(value.to_bytes(SHARE_BYTES, "big") for value in pair)
            for pair in zip(*dealt, strict=True)
        ]
        sealed = [
            self._seal(h, b"".join(p)) for h, p in zip(holders, pairs, strict=True)
        ]
        own = b"".join(pairs[holders.index(self.name)])
        self._kept.held = join([self.name.encode(), own])
        checks = [b"".join(cohort.check(half) for half in pair) for pair in pairs]
        return join([cohort.commitment(self.name, self._kept.seed), *sealed, *checks])

    def open(self, body: bytes) -> None:
        """Take the shares that others dealt to this client, before it trains.

        Parameters
        ----------
        body : bytes
            Fields: who dealt shares (flags), then for each neighbour among them, in
            order, what it sealed for this client.

        Raises
        ------
        ProtocolError
            If too few clients are there for the sum to be opened later.
        """
        self._enter("mask")
        cohort = self.cohort
        flags, *sealed = split(body, 1 + MAX_CLIENTS, 1)
        there = set(cohort.left(flags))
        dealers = [n for n in cohort.neighbours[self.name] if n in there]
        enough = len(dealers) + 1 >= cohort.needed(self.name)
        if self.name not in there or len(sealed) != len(dealers) or not enough:
            raise ProtocolError("too-few-left", "too few neighbours, or shares missing")
        held = split(self._kept.held, 2)
        for dealer, box in zip(dealers, sealed, strict=True):
            held += [dealer.encode(), self._unseal(dealer, box)]
        self._kept.held, self._kept.flags = join(held), flags

    def mask(self, values: NDArray[np.unsignedinteger[Any]]) -> None:
        """Mask ``values`` (n,) in place, and forget the keys it was done with.

        Works once, after :meth:`open`: other values must not get the same mask.
        """
        if not (self._kept.seed and self._kept.flags):
            raise ProtocolError("stage", "no shares were exchanged, or it was masked")
        cohort, there = self.cohort, set(self.cohort.chosen(self._kept.flags))
        masks = [cohort.own_mask(self.name, self._kept.seed)]
        masks += [
            agree_on_mask(cohort, self.name, self._kept.mask, other)
            for other in cohort.neighbours[self.name]
            if other in there
        ]
        self._kept.mask = self._kept.share = self._kept.seed = b""
        add_masks(values, masks)

    def consent(self, body: bytes) -> bytes:
        """Return this client's signature of who is in the sum (its first field)."""
        self._enter("consent")
        [flags] = split(body, 1, 1)
        self._accept(flags)
        return self._identity.sign(self.cohort.consent(flags))

    def unmask(self, body: bytes) -> bytes:
        """Return one share for every neighbour, and for this client itself.

        Parameters
        ----------
        body : bytes
            Fields: who is in the sum (flags); with a malicious threat also each
            client's signature of it, in order, or an empty one.

        Returns
        -------
        bytes
            Fields, for each dealer in order: its share of the seed if it is in the sum,
            else of its private key; empty if it dealt none that could be opened.

        Raises
        ------
        ProtocolError
            If too few are in the sum, or too few of them signed, or this client signed
            something else. Nothing is told then, now or later.
        """
        self._enter("unmask")
        flags, *signatures = split(body, 1 + MAX_CLIENTS, 1)
        if self.session.threat == MALICIOUS:
            if flags != self._kept.left:
                raise ProtocolError("consent", "not the clients that were consented to")
            self._check_signatures(flags, signatures)
        elif signatures:
            raise ProtocolError("fields", "signatures that nobody was asked for")
        else:
            self._accept(flags)
        cohort, left = self.cohort, set(self.cohort.chosen(flags))
        there = set(cohort.chosen(self._kept.flags))
        fields_ = split(self._kept.held, 2 + 2 * MAX_CLIENTS)
        held = dict(zip(fields_[::2], fields_[1::2], strict=True))
        self._kept.held = b""
        answer = []
        for dealer in cohort.holders(self.name):
            if dealer in there:
                of_seed = dealer in left
                both = held[dealer.encode()]
                answer.append(both[SHARE_BYTES:] if of_seed else both[:SHARE_BYTES])
        return join(answer)

    def _enter(self, stage: str) -> None:
        """Refuse a stage that is not the next one; it cannot be entered again."""
        expected = self._kept.next.decode()
        if stage != expected:
            raise ProtocolError("stage", f"{stage} was asked for, {expected} is next")
        place = STAGES.index(stage) + 1
        if stage == "mask" and self.session.threat != MALICIOUS:
            place += 1
        self._kept.next = STAGES[place].encode() if place < len(STAGES) else END

    def _advert(self) -> bytes:
        public = (public_key(self._kept.mask), public_key(self._kept.share))
        return advert(self.session, self._identity, *public)

    def _accept(self, flags: bytes) -> None:
        """Check who is said to be in the sum, and remember it."""
        left = self.cohort.left(flags)
        there = set(self.cohort.chosen(self._kept.flags))
        if self._kept.seed or self.name not in left or not there.issuperset(left):
            raise ProtocolError("survivors", "not a subset with this client")
        self._kept.left = flags

    def _check_signatures(self, flags: bytes, signatures: list[bytes]) -> None:
        cohort, signed = self.cohort, 0
        if len(signatures) != len(cohort):
            raise ProtocolError("signatures", "not one field for each client")
        left = set(cohort.chosen(flags))
        for name, signature in zip(cohort.names, signatures, strict=True):
            if name in left and signature:
                public = cohort.identity[name]
                self._roster.verify(public, signature, cohort.consent(flags))
                signed += 1
        needed = threshold(len(cohort), self.session.threat)
        if signed < needed:
            raise ProtocolError("signatures", f"{signed}, at least {needed}")

    def _seal(self, holder: str, shares: bytes) -> bytes:
        if holder == self.name:
            return b""
        way = (self.name, holder)
        key = self.cohort.sealing_key(self._kept.share, holder, *way)
        return AESGCM(key).encrypt(NONCE, shares, None)

    def _unseal(self, dealer: str, box: bytes) -> bytes:
        """Return two shares, or nothing: a bad dealer does not stop the others."""
        way = (dealer, self.name)
        key = self.cohort.sealing_key(self._kept.share, dealer, *way)
        try:
            shares = AESGCM(key).decrypt(NONCE, box, None)
        except InvalidTag:
            return b""
        return shares if len(shares) == 2 * SHARE_BYTES else b""
