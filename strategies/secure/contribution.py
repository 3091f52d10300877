"""What reaches the functions inside a secure sum's mod, and what they report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps

import numpy as np
from flwr.app import (
    ArrayRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable, Mod

from truststram._flower import with_content
from truststram.errors import ProtocolError
from truststram.records import Float32, records_of, view

from ..base import NUM_EXAMPLES
from ..update import DELTA, UPDATE, Model, read_delta
from ..withheld import WithheldError, withheld
from .wire import SECURE

__all__ = ["numbers_of", "reported", "training_mod", "update_of"]

MOST = 2**62  # examples; what "infinitely many" counts as


def training_mod(
    answer: Callable[[Message, Context, ClientAppCallable], Message],
) -> Mod:
    """Return the mod that gives train messages to ``answer``; the outermost.

    Evaluate messages are refused, and all others (query) reach the app as they are.
    """

    @wraps(answer)
    def mod(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        kind = message.metadata.message_type.split(".")[0]
        if kind == MessageType.EVALUATE:
            raise WithheldError("evaluation on private data is not released")
        if kind != MessageType.TRAIN:
            return call_next(message, context)
        return answer(message, context, call_next)

    return mod


def reported(
    message: Message, context: Context, call_next: ClientAppCallable
) -> RecordDict:
    """Return what the functions inside make of a message; they do not see the request.

    Raises
    ------
    WithheldError
        If they fail; the reason stays on the node.
    """
    plain = {k: v for k, v in message.content.items() if k != SECURE}
    inside = with_content(message, RecordDict(plain))
    reply = withheld(inside, context, call_next)
    if not reply.has_content():
        raise WithheldError("training failed; the reason stays on the node")
    return reply.content


def update_of(found: RecordDict, asked: ArrayRecord) -> Float32:
    """Return the update, as long as the mods inside have made it, shape (n,).

    Parameters
    ----------
    found : RecordDict
        Their reply.
    asked : ArrayRecord
        The model that they were given.
    """
    record = found.get(UPDATE)
    if not isinstance(record, ArrayRecord):
        return read_delta(found, Model(asked))
    array = record[DELTA]
    if len(array.shape) != 1:
        raise ProtocolError("shape", "an update is one vector")
    values = view(array, "float32", tuple(array.shape))
    return np.ascontiguousarray(values, np.float32)


def numbers_of(content: RecordDict) -> tuple[Mapping[str, float], int]:
    """Return the scalar training metrics and the number of examples (1 if unknown)."""
    metrics: dict[str, float] = {}
    for record in records_of(content, MetricRecord):
        metrics |= {k: float(v) for k, v in record.items() if not isinstance(v, list)}
    examples = metrics.pop(NUM_EXAMPLES, 1.0)
    # Not a number is 0, too; more than MOST is clipped further on in any case.
    return metrics, int(min(examples, MOST)) if examples >= 0 else 0
