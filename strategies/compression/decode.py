"""Replies as if nothing had been encoded: the server's reading of what nodes send."""

from __future__ import annotations

from flwr.app import ArrayRecord, RecordDict

from truststram.errors import ProtocolError
from truststram.records import Spec, view

from ..update import DELTA, UPDATE, with_delta
from . import wire
from .messages import FRAME, RECORD, frame_of, is_framed
from .selection import Selection

__all__ = ["decoded", "expanded"]


def decoded(
    content: RecordDict, spec: Spec, codec: str, selection: Selection | None
) -> RecordDict:
    """Return a reply with its update instead of a frame.

    Parameters
    ----------
    content : RecordDict
        Of an untrusted node. Without a frame only the record that is meant for the
        server's half is taken out.
    spec : Spec
        Of the model.
    codec : str
        The one that the node was asked for.
    selection : Selection or None
        Of this round.

    Raises
    ------
    ProtocolError
        As :func:`.wire.unpack`.
    """
    if is_framed(content):
        delta = wire.unpack(
            frame_of(content[FRAME]),  # type: ignore[arg-type]  # an ArrayRecord
            d=spec.size,
            spec_hash=wire.spec_hash(spec),
            allowed=(codec,),
            shared=selection,
        )
        content = with_delta(content, delta)
    return _without_record(content)


def expanded(content: RecordDict, selection: Selection | None) -> RecordDict:
    """Return the one reply of a secure sum with all coordinates, shape (d,).

    The values outside the selection are zero: nobody sent them.

    Parameters
    ----------
    content : RecordDict
        An update of shape (k,), the mean of what the nodes had at the selection.
    selection : Selection
        Of this round, k coordinates.

    Raises
    ------
    ProtocolError
        If the update has another shape: a mistake of the layer outside.
    """
    update = content.get(UPDATE)
    if selection is None or not isinstance(update, ArrayRecord) or [*update] != [DELTA]:
        raise ProtocolError("array-keys", f"an update holds one array, {DELTA!r}")
    values = view(update[DELTA], "float32", (selection.k,))
    whole = selection.scatter(values)  # type: ignore[arg-type]  # view() checked it
    return _without_record(with_delta(content, whole))


def _without_record(content: RecordDict) -> RecordDict:
    return RecordDict({k: v for k, v in content.items() if k != RECORD})
