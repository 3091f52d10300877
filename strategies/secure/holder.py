"""Decrypting a sum for the server: the part of the nodes that hold the secret key.

The server never has the key. It sends the sum of the ciphertexts to the decryptor, or
to two of the nodes that took part, and gets the exact integers back. Whoever decrypts
is the last who can refuse, and checks by itself what can be checked:

- the signed heads of all frames in the sum: members of the roster, each once, at least
  ``secure.min-cohort`` of them, all of one run, round, cohort, key, set of parameters
  (the job is part of it), **model** and **content**. A server that gave nodes different
  models, or other settings to one of them (:mod:`.given`), has heads that differ, and
  gets nothing;
- a node that took part: that it was given this content, for this cohort;
- after decryption, before anything is told: as many clients as heads are in the sum,
  every value is in range, the checksum fits;
- the journal: no two sums from which one node could be subtracted are told, and of
  fixed groups no sums across them (:mod:`.journal`). A sum that does not pass the
  checks is not told, and its set does not count: one node with a wrong checksum cannot
  close a model to the others.

What is told is the sum of the updates and of each counter; the checksum, which is not a
sum, stays here (:meth:`.slots.Slots.told`).

Guarantees
----------
A server that follows the protocol learns sums only. One that does not can add other
ciphertexts than those of the heads and forge the counters, because ciphertexts can be
added to: under ``secure.threat = malicious`` the decryptor therefore gets the frames
and adds them itself, and the roster must name no second decryptor, which would have a
journal of its own.

That a sum was refused tells the server one bit, and together with a malicious node,
whose values could be chosen for it, a bit about the honest ones. ``TRIES`` bounds it:
so many different sums of overlapping sets are decrypted for a model, told or not.

Where nodes hold the key, a server that deviates is not held back at all: besides
forging sums, it could ask two nodes for the sum of S and two others for that of S
without one node, each pair for the first time. Their journals guard against a server
that was restarted or is run twice under one key, which asks the same nodes again
(:mod:`.opening`).
"""

from __future__ import annotations

from collections.abc import Sequence

from truststram.errors import ProtocolError

from .identity import CLIENT, DECRYPTOR
from .journal import Journal
from .keys import JobKey, Keyring
from .sizes import largest_group
from .terms import SUM, UPDATE, Request, Terms, label_of
from .wire import Frame, Header, check_header, digest, open_frame, open_head, seal

__all__ = ["opened"]

# Different sums of overlapping sets that are decrypted for one model.
TRIES = 8


def opened(
    request: Request, terms: Terms, run: str, keyring: Keyring, journal: Journal
) -> bytes:
    """Return the signed frame with the sum that ``request`` asks for.

    The body is the vector of :mod:`.slots`, little-endian integers of
    :func:`sum_dtype`.

    Raises
    ------
    ProtocolError
        With the reason for which nothing is decrypted.
    """
    key, role = keyring.key, keyring.identity.member.role
    assert key is not None
    holder = DECRYPTOR if terms.parameters.public else CLIENT
    if role != holder:
        raise ProtocolError("role", f"only a {holder} decrypts sums of this job")
    expected: dict[str, str | int] = {
        "scheme": terms.parameters.scheme,
        "job": run,
        "round": request.round,
        "stage": UPDATE,
        "cohort": request.cohort_hash,
        "model": request.model,
        "content": request.content,
        "key": key.fingerprint,
        "parameters": terms.hash,
    }
    if role == CLIENT and not journal.trained(request.part_taken):
        raise ProtocolError("model", "this node took no part with that message")
    total, frames = _summed(request, terms, keyring, key, expected)
    header, names = frames[0].header, [frame.member.name for frame in frames]
    # The bytes of the sum are known from the heads where they are added here.
    given = b"" if terms.adds else total
    _try(journal, request.model, names, digest(given, *sorted(f.head for f in frames)))
    slots = terms.slots(header.about)
    values = key.cipher.decrypt(total, slots.size, len(frames))
    slots.read(values, len(frames), label_of(header))
    if terms.job.secure.keeps_groups:
        journal.together(run, names, largest_group(terms.job))
    journal.open(request.model, names)
    about = {"part": request.part, "nodes": nodes_hash(frames)}
    answer = Header(**{**expected, "node": "", "stage": SUM, "about": about})  # type: ignore[arg-type]  # all fields by name
    body = slots.told(values).astype(sum_dtype(terms)).tobytes()
    return seal(keyring.identity, answer, body)


def _try(journal: Journal, model: str, names: list[str], content: str) -> None:
    """Remember, before it is decrypted, that a sum is; refuse one too many.

    Each try is an entry of its own in the journal, which takes sets that are equal or
    have nothing in common: the same sum again, or those of other groups.
    """
    for i in range(TRIES):
        try:
            return journal.open(f"{model} try {i}", [*names, content])
        except ProtocolError as error:
            last = error
    raise last


def nodes_hash(frames: Sequence[Frame]) -> str:
    """Return the hash of the names of who is in a sum."""
    return digest(*sorted(frame.member.name.encode() for frame in frames))


def sum_dtype(terms: Terms) -> str:
    """Return the type of the integers of a sum."""
    return "<u4" if terms.quantiser.width <= 32 else "<u8"


def _summed(
    request: Request,
    terms: Terms,
    keyring: Keyring,
    key: JobKey,
    expected: dict[str, str | int],
) -> tuple[bytes, list[Frame]]:
    """Return the encrypted sum and the heads of what is in it, checked."""
    adds, roster = terms.adds, keyring.roster
    if adds and sum(member.role == DECRYPTOR for member in roster) > 1:
        raise ProtocolError("role", "the roster has another decryptor")
    parts = request.frames if adds else request.heads
    least, most = terms.least, terms.parameters.most
    if not least <= len(parts) <= most:
        text = f"a sum of {len(parts)} nodes, from {least} to {most} are allowed"
        raise ProtocolError("cohort-size", text)
    if not adds:
        frames = [open_head(part, roster) for part in parts]
        for frame in frames:
            check_header(frame.header, expected)
    else:
        longest = max(map(len, parts))
        frames = [open_frame(part, roster, expected, longest) for part in parts]
    check_distinct(frames)
    if not adds:
        return request.total, frames
    size = terms.slots(frames[0].header.about).size
    return key.cipher.add([frame.body for frame in frames], size), frames


def check_distinct(frames: Sequence[Frame]) -> None:
    """Refuse frames of which two are of one node or do not describe the same vector.

    Raises
    ------
    ProtocolError
        ``duplicate``, ``role`` or ``header``.
    """
    if len({frame.member.name for frame in frames}) != len(frames):
        raise ProtocolError("duplicate", "a node is in the sum twice")
    if any(frame.member.role != CLIENT for frame in frames):
        raise ProtocolError("role", "a decryptor does not train")
    first = form(frames[0])
    if any(form(frame) != first for frame in frames):
        raise ProtocolError("header", "updates of different forms")


def form(frame: Frame) -> tuple[object, object]:
    """Return what must be the same in all frames of a sum."""
    about = frame.header.about
    return about.get("values"), about.get("metrics")
