"""The server of one secure aggregation, as a state machine: bytes in, bytes out.

See :mod:`.secagg` for the protocol. Replies are untrusted: a malformed, forged or late
one is dropped, with its reason in ``dropped``, and its sender has dropped out of the
sum. Senders are whatever the transport calls its nodes; names come from signatures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ProtocolError

from .fields import join, split
from .identity import Roster
from .masks import KEY_BYTES, add_masks, agree, public_key
from .secagg import MAX_CLIENTS, Cohort, Session, agree_on_mask, read_advert
from .shamir import SHARE_BYTES, reconstruct

__all__ = ["Server"]

HASH_BYTES = 32
# A sealed pair of shares and the tag of AES-GCM.
SEALED_BYTES = 2 * SHARE_BYTES + 16

Replies = Mapping[int, bytes]


class Server:
    """The server's half of one sum.

    Parameters
    ----------
    session : Session
    roster : Roster
    cheats : set of str, optional
        Names of clients that are not let in. Whoever is proven to have dealt shares of
        something else than it published is added.

    Attributes
    ----------
    dropped : list of (sender, ProtocolError)
        Replies that were not used, and why.
    """

    def __init__(
        self, session: Session, roster: Roster, cheats: set[str] | None = None
    ) -> None:
        self.session, self._roster = session, roster
        self._cheats = set() if cheats is None else cheats
        self.dropped: list[tuple[int, ProtocolError]] = []
        self._names: dict[int, str] = {}
        self._keys: set[bytes] = set()
        self._cohort: Cohort | None = None
        self._commitments: dict[str, bytes] = {}
        self._checks: dict[str, dict[str, tuple[bytes, bytes]]] = {}
        self._there: set[str] = set()
        self._left: set[str] = set()
        self._consents: dict[str, bytes] = {}
        self._total: NDArray[Any] | None = None

    @property
    def cohort(self) -> Cohort:
        """The clients of the sum; known once their keys are."""
        if self._cohort is None:
            raise RuntimeError("the clients' keys come first")
        return self._cohort

    @property
    def count(self) -> int:
        """Clients whose masked values are in the sum."""
        return len(self._left)

    def name(self, sender: int) -> str:
        """Return the name that a sender's keys were signed with."""
        return self._names[sender]

    def keys(self, replies: Replies) -> dict[int, bytes]:
        """Return what each client gets in the stage ``shares``: everybody's keys.

        Raises
        ------
        ProtocolError
            ``cohort-size``.
        """
        adverts = self._each(replies, self._read_advert)
        if len(adverts) > MAX_CLIENTS:
            raise ProtocolError("cohort-size", f"{len(adverts)}, most {MAX_CLIENTS}")
        in_order = sorted(adverts, key=self._names.__getitem__)
        body = join(adverts[sender] for sender in in_order)
        self._cohort = Cohort(body, self.session, self._roster)
        return dict.fromkeys(adverts, body)

    def shares(self, replies: Replies) -> dict[int, bytes]:
        """Return what each client gets in the stage ``mask``: the shares dealt to it.

        Raises
        ------
        ProtocolError
            ``too-few-left``.
        """
        boxes = self._each(replies, self._read_shares)
        cohort = self.cohort
        dealt = {self._names[sender]: sealed for sender, sealed in boxes.items()}
        self._there = self._connected(set(dealt))
        flags = cohort.flags(self._there)
        cohort.left(flags)
        messages = {}
        for sender in boxes:
            name = self._names[sender]
            if name in self._there:
                dealers = [n for n in cohort.neighbours[name] if n in self._there]
                messages[sender] = join([flags, *(dealt[d][name] for d in dealers)])
        return messages

    def add(self, sender: int, values: NDArray[np.unsignedinteger[Any]]) -> None:
        """Add a client's masked values (n,), all of one dtype and length, to the sum.

        Raises
        ------
        ProtocolError
            If the client is not in the sum, is in it already, or sent another form.
        """
        name = self._names.get(sender)
        if name not in self._there or name in self._left:
            raise ProtocolError("not-in-sum", "no masked values are expected from it")
        if self._total is None:
            self._total = np.zeros_like(values)
        if (values.dtype, values.shape) != (self._total.dtype, self._total.shape):
            raise ProtocolError("shape", "not the form that others sent")
        self._total += values
        self._left.add(name)

    def survivors(self) -> dict[int, bytes]:
        """Return what each client gets that is in the sum: who is in it.

        For the stage ``consent`` (malicious) or ``unmask`` (semi-honest).

        Raises
        ------
        ProtocolError
            ``too-few-left``.
        """
        flags = self.cohort.flags(self._left)
        self.cohort.left(flags)
        return self._to_left(join([flags]))

    def consents(self, replies: Replies) -> dict[int, bytes]:
        """Return what each client gets in the stage ``unmask`` (malicious only).

        Raises
        ------
        ProtocolError
            ``too-few-left``, if too few consented.
        """
        cohort = self.cohort
        flags = cohort.flags(self._left)
        signed = self._each(replies, self._read_consent)
        self._consents = {self._names[s]: signature for s, signature in signed.items()}
        cohort.left(cohort.flags(self._consents))
        signatures = (self._consents.get(name, b"") for name in cohort.names)
        return self._to_left(join([flags, *signatures]), self._consents)

    def unmask(self, replies: Replies) -> NDArray[np.unsignedinteger[Any]]:
        """Return the sum (n,) of the values of all clients in it.

        Raises
        ------
        ProtocolError
            ``too-few-shares`` or ``dealer`` (its shares do not fit to what it
            published), if the sum cannot be unmasked.
        """
        if self._total is None:
            raise ProtocolError("too-few-left", "nobody sent values")
        answers = self._each(replies, self._read_answers)
        shares: dict[str, dict[int, int]] = {}
        for given in answers.values():
            for dealer, number, value in given:
                shares.setdefault(dealer, {})[number] = value
        masks = []
        for dealer in sorted(self._there):
            masks += self._masks_of(dealer, shares.get(dealer, {}))
        add_masks(self._total, masks)
        return self._total

    def _each(self, replies: Replies, read: Callable[[int, bytes], Any]) -> Any:
        """Return what ``read`` makes of each reply; note those that are refused."""
        results = {}
        for sender, body in replies.items():
            try:
                results[sender] = read(sender, body)
            except ProtocolError as error:
                self.dropped.append((sender, error))
        return results

    def _read_advert(self, sender: int, body: bytes) -> bytes:
        name, *keys = read_advert(body, self.session, self._roster)
        if name in self._cheats:
            raise ProtocolError("dealer", "it dealt shares that do not fit, before")
        if name in self._names.values():
            raise ProtocolError("duplicate", "the name has advertised keys already")
        if self._keys.intersection(keys) or len(set(keys)) < len(keys):
            raise ProtocolError("duplicate-key", "a key was advertised twice")
        probe = os.urandom(KEY_BYTES)
        for key in keys:
            agree(probe, key)
        self._keys.update(keys)
        self._names[sender] = name
        return body

    def _read_shares(self, sender: int, body: bytes) -> dict[str, bytes]:
        """Note the hashes of a client's shares; return what it sealed for whom."""
        name, holders = self._known(sender)
        commitment, *rest = split(body, 1 + 2 * len(holders)) or [b""]
        sealed, checks = rest[: len(holders)], rest[len(holders) :]
        sizes = [0 if holder == name else SEALED_BYTES for holder in holders]
        sizes += [2 * HASH_BYTES] * len(holders)
        if [len(x) for x in rest] != sizes or len(commitment) != HASH_BYTES:
            raise ProtocolError("size", "not a sealed pair and two hashes per holder")
        self._commitments[name] = commitment
        self._checks[name] = {
            holder: (check[:HASH_BYTES], check[HASH_BYTES:])
            for holder, check in zip(holders, checks, strict=True)
        }
        return dict(zip(holders, sealed, strict=True))

    def _read_consent(self, sender: int, body: bytes) -> bytes:
        name, _ = self._known(sender)
        if name not in self._left:
            raise ProtocolError("not-in-sum", "its values are not in the sum")
        signed = self.cohort.consent(self.cohort.flags(self._left))
        self._roster.verify(self.cohort.identity[name], body, signed)
        return body

    def _read_answers(self, sender: int, body: bytes) -> list[tuple[str, int, int]]:
        """Return (dealer, holder's number, share) for every share that is right."""
        name, holders = self._known(sender)
        if name not in self._left:
            raise ProtocolError("not-in-sum", "its values are not in the sum")
        dealers = [d for d in holders if d in self._there]
        given = split(body, len(dealers))
        if len(given) != len(dealers):
            raise ProtocolError("size", "not one share for each dealer")
        found = []
        for dealer, value in zip(dealers, given, strict=True):
            check = self._checks[dealer][name][dealer in self._left]
            if self.cohort.check(value) == check:
                number = self.cohort.holders(dealer).index(name) + 1
                found.append((dealer, number, int.from_bytes(value, "big")))
            # Else nobody is blamed: the holder may have changed it, or the dealer
            # sealed another share than the one whose hash it published.
        return found

    def _known(self, sender: int) -> tuple[str, list[str]]:
        """Return a sender's name, and the holders of its secrets."""
        if sender not in self._names:
            raise ProtocolError("unknown-node", "it advertised no keys")
        name = self._names[sender]
        return name, self.cohort.holders(name)

    def _connected(self, names: set[str]) -> set[str]:
        """Return those who have enough holders among them to be opened later."""
        cohort = self.cohort
        while True:
            kept = {
                name
                for name in names
                if len(names.intersection(cohort.holders(name))) >= cohort.needed(name)
            }
            if kept == names:
                return kept
            names = kept

    def _to_left(
        self, body: bytes, names: Mapping[str, bytes] | None = None
    ) -> dict[int, bytes]:
        kept = self._left if names is None else names
        return {s: body for s, name in self._names.items() if name in kept}

    def _masks_of(self, dealer: str, shares: Mapping[int, int]) -> list[Any]:
        """Return what takes one client's masks out of the sum."""
        cohort = self.cohort
        in_sum = dealer in self._left
        others = [n for n in cohort.neighbours[dealer] if n in self._left]
        if not in_sum and not others:
            return []
        needed = cohort.needed(dealer)
        if len(shares) < needed:
            raise ProtocolError(
                "too-few-shares", f"{len(shares)} of {dealer}, {needed} are needed"
            )
        value = reconstruct({x: shares[x] for x in sorted(shares)[:needed]})
        secret = (value % 2 ** (8 * KEY_BYTES)).to_bytes(KEY_BYTES, "big")
        if in_sum:
            right = cohort.commitment(dealer, secret) == self._commitments[dealer]
        else:
            right = public_key(secret) == cohort.mask_key[dealer]
        if not right:
            # As many shares as fit their published hashes: nobody else can have erred.
            self._cheats.add(dealer)
            raise ProtocolError("dealer", f"the shares of {dealer} do not fit")
        if in_sum:
            key, _ = cohort.own_mask(dealer, secret)
            return [(key, True)]
        # What the dealer would have sent cancels what the others added for it.
        return [agree_on_mask(cohort, dealer, secret, other) for other in others]
