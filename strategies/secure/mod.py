"""Client half of secure sums under homomorphic encryption.

With this mod outermost, nothing that a node sends tells about it alone: the update, the
number of examples and all metrics leave inside one encrypted, signed frame
(:mod:`.slots`, :mod:`.wire`); evaluation and texts of errors do not leave at all. What
``secure.layers`` does not name travels in clear beside the frame.

Before it trains, a node checks what it was asked: that it is one of a cohort of at
least ``secure.min-cohort``, and that the model and all else that reaches the app are
what the request names (:mod:`.given`): its signed frame says so to whoever decrypts. It
may train for other cohorts with the same model: which sums are told is decided where
they are decrypted, by the nodes that hold the key (:mod:`.holder`).
"""

from __future__ import annotations

import hashlib
import math

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from truststram.errors import ConfigError, ProtocolError
from truststram.job import Job
from truststram.records import Spec, pack
from truststram.rng import derive

from ..withheld import WithheldError
from .clear import CLEAR, VALUES
from .contribution import numbers_of, reported, training_mod, update_of
from .given import check_given
from .holder import opened
from .identity import DECRYPTOR
from .journal import Journal
from .keys import HE, JobKey, Keyring, keyring_of, require_seal
from .selection import Selection
from .terms import HELLO, OPEN, SUM, UPDATE, Request, Terms, label_of, terms_of
from .wire import Header, seal, with_frame

__all__ = ["secure_mod"]


def secure_mod(job: Job) -> Mod:
    """Return the mod for a job with ``secure.scheme`` ckks or bfv; the outermost.

    Parameters
    ----------
    job : Job
        Its ``secure`` section and ``run.seed``, which decides how values are rounded.

    Guarantees
    ----------
    A reply is one frame: an encryption of the update and of everything else that the
    functions inside report, signed by this node. Towards the server it is
    indistinguishable from one of any other update of the same length (IND-CPA, 128
    bits) as long as nobody who holds the secret key helps. What the plaintext of a
    frame is, nobody checks: a malicious node may contribute any values up to
    ``secure.clip`` each.

    Raises
    ------
    ConfigError
        For a job without such a scheme.
    """
    if job.secure.scheme not in HE:
        raise ConfigError("secure_mod needs secure.scheme = ckks or bfv.")
    require_seal(job)

    def answer(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        return _Node(job, context, Request.of(message.content)).answer(
            message, call_next
        )

    return training_mod(answer)


class _Node:
    """Answers one request."""

    def __init__(self, job: Job, context: Context, request: Request) -> None:
        self.job, self.context, self.request = job, context, request
        self.terms: Terms = terms_of(job)
        self.keyring: Keyring = keyring_of(context, job)
        key = self.keyring.key
        assert key is not None
        self.key: JobKey = key
        self.run = str(context.run_id)
        self.journal = Journal(context, key.fingerprint, self.keyring.folder)

    def answer(self, message: Message, call_next: ClientAppCallable) -> Message:
        request = self.request
        if request.stage == OPEN:
            return Message(with_frame(self._opened()), reply_to=message)
        if request.stage == HELLO:
            frame = seal(self.keyring.identity, self._header(HELLO), b"")
            return Message(with_frame(frame), reply_to=message)
        arrays = self._check(message)
        found = reported(message, self.context, call_next)
        return Message(self._sealed(arrays, found), reply_to=message)

    def _opened(self) -> bytes:
        """Return the decrypted sum, or why not, signed."""
        args = (self.request, self.terms, self.run, self.keyring, self.journal)
        try:
            return opened(*args)
        except ProtocolError as error:
            header = self._header(SUM, part=self.request.part, refused=error.code)
            return seal(self.keyring.identity, header, b"")

    def _header(self, stage: str, **about: object) -> Header:
        return Header(
            scheme=self.terms.parameters.scheme,
            job=self.run,
            round=self.request.round,
            stage=stage,
            node="",
            cohort=self.request.cohort_hash,
            model=self.request.model,
            content=self.request.content,
            key=self.key.fingerprint,
            parameters=self.terms.hash,
            about=about,
        )

    def _check(self, message: Message) -> ArrayRecord:
        """Refuse to train for a request that is not sound; return the model."""
        request, keys = self.request, self.job.secure
        if self.keyring.identity.member.role == DECRYPTOR:
            raise ProtocolError("role", "this node decrypts and never trains")
        size = len(set(request.cohort))
        largest = math.inf if keys.group_size else self.terms.parameters.most
        least = self.terms.least
        if not least <= size <= largest or size != len(request.cohort):
            raise ProtocolError(
                "cohort-size",
                f"{size} nodes were asked; this job needs from {least} to {largest:g} "
                "(secure.min-cohort, secure.max-cohort)",
            )
        if str(self.context.node_id) not in request.cohort:
            raise ProtocolError("cohort", "this node is not in the cohort")
        arrays = check_given(message, request.model, request.content)
        self.journal.train(request.part_taken)
        return arrays

    def _sealed(self, arrays: ArrayRecord, found: RecordDict) -> RecordDict:
        """Return the reply: a frame and, if the job says so, values in clear."""
        update = update_of(found, arrays)
        clear = update[:0]
        if self.job.secure.layers:
            selection = Selection.of(Spec.of(arrays), self.job.secure.layers)
            update, clear = selection.split(update)
        metrics, examples = numbers_of(found)
        about: dict[str, object] = {"values": len(update), "metrics": sorted(metrics)}
        if len(clear):
            about[CLEAR] = hashlib.sha256(clear.tobytes()).hexdigest()
        rng = derive(
            self.job.run.seed,
            "rounding",
            self.keyring.identity.member.name,
            self.request.round,
        )
        label = label_of(self._header(UPDATE))
        try:
            slots = self.terms.slots(about)
            vector = slots.fill(update, examples, metrics, label, rng)
        except ValueError:  # not a number, or unusual metrics
            raise WithheldError("the update cannot be encoded") from None
        body = self.key.cipher.encrypt(vector)
        header = self._header(UPDATE, **about)
        content = with_frame(seal(self.keyring.identity, header, body))
        if len(clear):
            content[CLEAR] = ArrayRecord({VALUES: pack(clear)})
        return content
