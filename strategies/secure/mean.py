"""What the layers inside get of a decrypted sum: one reply with the mean update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from truststram.errors import ProtocolError
from truststram.records import Spec, blank

from ..base import synthetic_reply
from ..update import DELTA, UPDATE
from .clear import clear_mean
from .intake import Verified
from .opening import Opening, Part
from .selection import Selection
from .slots import Summed
from .telling import Telling
from .terms import Terms, label_of

__all__ = ["mean_of"]


def mean_of(
    terms: Terms,
    spec: Spec,
    replies: Sequence[Verified],
    part: Part,
    opening: Opening,
    telling: Telling,
) -> Message:
    """Return the reply that stands for a sum.

    Parameters
    ----------
    terms : Terms
    spec : Spec
        Of the model.
    replies : sequence of (Message, Frame)
        What is in the sum.
    part : Part
        The sum, as ``opening`` has left it.
    opening : Opening
    telling : Telling

    Raises
    ------
    ProtocolError
        ``not-decrypted``, or what is wrong with the sum.
    """
    if part.result is None:
        reasons = dict.fromkeys(map(str, opening.reasons)) or ["nobody answered"]
        raise ProtocolError("not-decrypted", "; ".join(reasons)[:500])
    header = replies[0][1].header
    # Whoever decrypted it has compared the checksum, and keeps it.
    slots = replace(terms.slots(header.about), checked=False)
    found = slots.read(part.result, len(replies), label_of(header))
    telling.sum(found.clients, found.clipped, slots.values)
    update, examples = _update(terms, spec, replies, found), max(found.examples, 1)
    return synthetic_reply(replies[0][0], update, found.metrics, examples)


def _update(
    terms: Terms, spec: Spec, replies: Sequence[Verified], found: Summed
) -> RecordDict:
    """Return a content with the mean update, as long as the nodes sent it."""
    mean = (found.values / found.clients).astype(np.float32)
    keys = terms.job.secure
    array, out = blank((spec.size if keys.layers else len(mean),))
    if keys.layers:
        selection = Selection.of(spec, keys.layers)
        parts = [(reply.content, frame) for reply, frame in replies]
        selection.join(mean, clear_mean(parts, selection, keys.clip), out)
    else:
        out[:] = mean
    record = ArrayRecord()
    record[DELTA] = array  # the constructor would make another Array
    return RecordDict({UPDATE: record})
