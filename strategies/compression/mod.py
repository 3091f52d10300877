"""Client half of compression: make the model that the server means, encode the update.

``ClientApp(mods=[compression_mod])`` is all that a client needs: what to send with is
the server's choice (:class:`.messages.Ask`), and a server that asks for nothing gets
stock replies. Must be outside the mods that make or change the update (``delta_mod``,
privacy): under local differential privacy encoding is post-processing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from logging import WARNING

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.logger import log

from truststram.errors import DataError, ProtocolError
from truststram.records import Float32, Spec, records_of
from truststram.rng import derive

from ..stores import node_name, store_of
from ..update import Model, read_delta, with_delta
from . import wire
from .codecs import make_codec
from .downlink import model_hash
from .feedback import Feedback
from .follow import followed
from .messages import RECORD, STEPS, Answer, Ask, framed
from .selection import Selection, count

__all__ = ["compression_mod"]


def compression_mod(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Flower mod: answer with encoded updates, where the server asks for them.

    Guarantees
    ----------
    The functions inside see the model that the server says (by its hash, with a
    downlink codec) and a message without any trace of compression. With error feedback
    a round that is repeated is answered with the reply that was made first, without
    training, and what a codec left out is added to the node's next update once.

    Raises
    ------
    ProtocolError
        If the server asks for something impossible.
    DataError
        If the update is not finite, or the node cannot remember what it must.
    """
    kind, start = message.metadata.message_type.split(".")[0], time.monotonic()
    ask = Ask.of(message.content)
    if ask is None or kind not in (MessageType.TRAIN, MessageType.EVALUATE):
        return call_next(message, context)
    store = store_of(context, ask.job)
    answer = Answer(held=ask.model)
    if ask.model:
        try:
            arrays = followed(ask, message.content, store)
        except ProtocolError as error:
            log(WARNING, "the model cannot be made from its steps: %s", error)
            answer = Answer(missing=True, differs=error.code == "model-differs")
            return Message(RecordDict({RECORD: answer.record()}), reply_to=message)
        message.content = _plain(message.content, ask.key, arrays)
    else:
        message.content = _plain(message.content)
    if kind == MessageType.EVALUATE or ask.codec == "none":
        reply = call_next(message, context)
        if reply.has_content():
            reply.content[RECORD] = answer.record()
        return reply
    return _trained(message, context, call_next, ask, answer, start)


def _plain(
    content: RecordDict, key: str = "", arrays: ArrayRecord | None = None
) -> RecordDict:
    """Return a message as the server would have sent it without compression."""
    found = RecordDict() if arrays is None else RecordDict({key: arrays})
    for name, record in content.items():
        if name not in (RECORD, STEPS, key):
            found[name] = record
    return found


def _trained(
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    ask: Ask,
    answer: Answer,
    start: float,
) -> Message:
    """Train, or find that it was done, and return the reply with an encoded update."""
    model = Model(records_of(message.content, ArrayRecord)[0])
    sender = _Sender(ask, model.spec, node_name(context))
    feedback = None
    if ask.feedback:
        name = ask.model or model_hash(model)
        feedback = Feedback(store_of(context, ask.job), sender.spec_hash, sender.d)
        if (made := feedback.repeated(ask.round, name)) is not None:
            return Message(sender.reply(*made), reply_to=message)
    reply = call_next(message, context)
    if not reply.has_content():
        return reply
    update = np.ascontiguousarray(read_delta(reply.content, model))
    if not np.isfinite(update).all():
        raise DataError("training made an update that is not finite")
    if feedback is not None:
        update = feedback.added(ask.round, update)
    body = sender.encoded(update)
    with np.errstate(over="ignore"):  # Feedback.commit keeps no such error
        lost = update - sender.decoded(body)
    answer = replace(answer, error=_part(lost, update))
    if feedback is not None:
        answer = replace(answer, fresh=feedback.fresh, damaged=feedback.damaged)
    records = RecordDict(
        {k: v for k, v in reply.content.items() if not isinstance(v, ArrayRecord)}
    )
    answer = replace(answer, seconds=time.monotonic() - start)
    records[RECORD] = answer.record()
    if feedback is not None:
        feedback.commit(ask.round, name, lost, records, body)
    reply.content = sender.reply(records, body)
    return reply


class _Sender:
    """Encodes the update of one round."""

    def __init__(self, ask: Ask, spec: Spec, node: str) -> None:
        self.spec_hash, self.d = wire.spec_hash(spec), spec.size
        self._reduced = ask.reduced
        try:
            self._codec = make_codec(ask.codec, ask.ratio)
        except ValueError as error:
            raise ProtocolError("ask", str(error)) from None
        self._rng = derive(ask.seed, "codec", node, ask.round)
        self._selection = self._known(ask) if self._codec.public else None

    def _known(self, ask: Ask) -> Selection:
        most = count(ask.ratio, self.d)
        return wire.unpack_selection(
            ask.selection, d=self.d, spec_hash=self.spec_hash, most=most
        )

    def encoded(self, update: Float32) -> bytes:
        """Return the bytes that stand for an update, shape (d,)."""
        if self._reduced:
            assert self._selection is not None
            return self._selection.gather(update).astype("<f4").tobytes()
        return wire.pack(
            self._codec,
            update,
            spec_hash=self.spec_hash,
            rng=self._rng,
            shared=self._selection,
        )

    def decoded(self, body: bytes) -> Float32:
        """Return what the server makes of :meth:`encoded`, shape (d,)."""
        if self._reduced:
            assert self._selection is not None
            return self._selection.scatter(np.frombuffer(body, "<f4"))
        return wire.unpack(
            body,
            d=self.d,
            spec_hash=self.spec_hash,
            allowed=(self._codec.name,),
            shared=self._selection,
        )

    def reply(self, records: RecordDict, body: bytes) -> RecordDict:
        """Return a reply with a frame, or reduced: with the values as an update."""
        if self._reduced:
            return with_delta(records, np.frombuffer(body, "<f4"))
        return framed(records, body)


def _part(lost: Float32, update: Float32) -> float:
    """Return |lost|**2 / |update|**2; 0 if there was nothing to lose."""
    whole = float(np.square(update, dtype=np.float64).sum())
    return float(np.square(lost, dtype=np.float64).sum()) / whole if whole else 0.0
