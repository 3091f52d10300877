"""The update a client sends: one flat float32 vector, client model minus global model.

Layers and mods exchange updates in this form because filters, clips and codecs are
about the difference, not about the weights (on raw weights a cosine is always near 1).

Message format
--------------
A train reply is a ``RecordDict`` with

``"update"``
    ArrayRecord with one array ``"delta"``: float32, shape ``(d,)``, the floating-point
    arrays of the model in the model's order (:class:`truststram.records.Spec`).
MetricRecord (any name)
    ``num-examples`` and the client's training metrics.

Whole numbers for a secure sum (:mod:`.secure.integers`) travel in an ArrayRecord
``"integers"`` in the place of an update.

A reply of a stock Flower client has its whole model in one ArrayRecord of any other
name instead. Every function here reads both, so each layer works with stock clients,
and :func:`to_weights` turns an update back into a model for a stock strategy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from truststram.errors import ProtocolError
from truststram.records import (
    Float32,
    Spec,
    blank,
    flat_leaves,
    flatten,
    pack,
    records_of,
    unflatten,
    view,
)

__all__ = [
    "Model",
    "blank_update",
    "delta_mod",
    "is_delta",
    "read_delta",
    "segments",
    "to_weights",
    "with_delta",
]

UPDATE = "update"
DELTA = "delta"
INTEGERS = "integers"


@dataclass(frozen=True)
class Model:
    """The global model that a round started from."""

    arrays: ArrayRecord

    @cached_property
    def spec(self) -> Spec:
        """Names, shapes and dtypes."""
        return Spec.of(self.arrays)

    @cached_property
    def flat(self) -> Float32:
        """The floating-point values, shape ``(spec.size,)``."""
        return flatten(self.arrays, self.spec)


def is_delta(content: RecordDict) -> bool:
    """Return whether a train reply carries an update (else: a whole model)."""
    return isinstance(content.get(UPDATE), ArrayRecord)


def _sole_arrays(content: RecordDict) -> ArrayRecord:
    records = records_of(content, ArrayRecord)
    if len(records) != 1:
        raise ProtocolError("array-records", f"{len(records)} ArrayRecords, not 1")
    return records[0]


def segments(
    content: RecordDict, spec: Spec
) -> Iterator[tuple[slice, NDArray[np.generic]]]:
    """Yield (place in the flat vector, 1-D values) of a reply, without copying.

    The values are the update itself or, when not :func:`is_delta`, the client's model.

    Raises
    ------
    ProtocolError
        If the reply does not fit ``spec``; nothing was allocated then.
    """
    arrays = _sole_arrays(content)
    if not is_delta(content):
        yield from flat_leaves(arrays, spec)
        return
    if list(arrays) != [DELTA]:
        raise ProtocolError("array-keys", f"an update holds one array, {DELTA!r}")
    yield slice(0, spec.size), view(arrays[DELTA], "float32", (spec.size,))


def read_delta(content: RecordDict, model: Model) -> Float32:
    """Return the update of a reply, shape ``(d,)``.

    Read-only if it is a view of received bytes; of a :func:`blank_update`, the values
    themselves.

    Raises
    ------
    ProtocolError
        If the reply does not fit the model.
    """
    if is_delta(content):
        [(_, values)] = segments(content, model.spec)
        return values  # type: ignore[return-value]  # view() checked float32
    delta = np.empty(model.spec.size, np.float32)
    for place, values in segments(content, model.spec):
        np.subtract(values, model.flat[place], out=delta[place], casting="same_kind")
    return delta


def blank_update(spec: Spec) -> tuple[RecordDict, Float32]:
    """Return a content with an update of zeros, and its writable values, shape (d,).

    A reducing layer computes its result right there, so that handing it on copies
    nothing.
    """
    array, values = blank((spec.size,))
    record = ArrayRecord()
    record[DELTA] = array  # the constructor would make another Array
    return RecordDict({UPDATE: record}), values


def with_delta(content: RecordDict, delta: Float32) -> RecordDict:
    """Return ``content`` with its arrays replaced by the update ``delta``."""
    record = RecordDict({UPDATE: ArrayRecord({DELTA: pack(delta)})})
    for name, other in content.items():
        if not isinstance(other, ArrayRecord):
            record[name] = other
    return record


def to_weights(content: RecordDict, model: Model, key: str = "arrays") -> RecordDict:
    """Return a reply as a stock client sends it: the whole model under ``key``."""
    if not is_delta(content):
        return content
    weights = model.flat + read_delta(content, model)
    record = RecordDict({key: unflatten(weights, model.spec, model.arrays)})
    for name, other in content.items():
        if not isinstance(other, ArrayRecord):
            record[name] = other
    return record


def delta_mod(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Flower mod: turn the model that a client trained into an update.

    Must be the innermost mod (last in the list). Evaluate and query messages pass
    unchanged.
    """
    if message.metadata.message_type.split(".")[0] != MessageType.TRAIN:
        return call_next(message, context)
    model = Model(_sole_arrays(message.content))
    reply = call_next(message, context)
    if not reply.has_content() or INTEGERS in reply.content:
        return reply
    if not is_delta(reply.content):
        reply.content = with_delta(reply.content, read_delta(reply.content, model))
    return reply
