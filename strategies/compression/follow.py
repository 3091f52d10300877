"""The node's end of the downlink chain: see :mod:`.downlink`."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from truststram.errors import ProtocolError
from truststram.records import Leaf, Spec, pack, records_of, unflatten

from ..memory import MALFORMED, Store
from ..update import Model
from .downlink import model_hash, parts_of, unpacked
from .messages import STEPS, Ask, frame_of

__all__ = ["followed"]

ENTRY = "model"


def followed(ask: Ask, content: RecordDict, store: Store) -> ArrayRecord:
    """Return the model of a message, on the node, and remember it.

    Raises
    ------
    ProtocolError
        ``model-missing``: the node does not have a model that the steps start from;
        ``model-differs``: its model, or what they lead to, is not the server's.
    DataError
        If the model cannot be remembered.
    """
    if not ask.stepwise:
        model = Model(next(iter(records_of(content, ArrayRecord)), ArrayRecord()))
        _remember(model, ask, store)
        return model.arrays
    held = _remembered(store)
    if held is None:
        raise ProtocolError("model-missing", "the node has no model")
    name, model = held
    if name == ask.model:
        return model.arrays
    if name not in ask.versions:
        raise ProtocolError("model-missing", "no step begins at the node's model")
    steps = content.get(STEPS)
    if not isinstance(steps, ArrayRecord):
        raise ProtocolError("ask", "no steps")
    for number in range(ask.versions.index(name), len(ask.versions)):
        step = unpacked(frame_of(steps, str(number)), model.spec)
        # Rounded after every step, as by the server, where floats are shorter.
        model = Model(unflatten(model.flat + step, model.spec, model.arrays))
    _remember(model, ask, store)
    return model.arrays


def _remember(model: Model, ask: Ask, store: Store) -> None:
    if model_hash(model) != ask.model:
        raise ProtocolError("model-differs", "the model is not the server's")
    leaves = [[x.name, list(x.shape), x.dtype] for x in model.spec.leaves]
    about = {"hash": ask.model.hex(), "leaves": leaves}
    store.save(ENTRY, about, parts_of(model))


def _remembered(store: Store) -> tuple[bytes, Model] | None:
    """Return the hash and values of the node's model; None if it has none."""
    entry = store.load(ENTRY)
    if entry is None:
        return None
    try:
        leaves, offset, arrays = [], 0, ArrayRecord()
        parts = iter(entry.parts[1:])
        for name, shape, dtype in entry.about["leaves"]:
            leaf = Leaf(name, tuple(shape), dtype, offset)
            leaves.append(leaf)
            if leaf.is_float:
                offset += leaf.size
            else:
                values = np.frombuffer(next(parts), dtype)
                arrays[name] = pack(values.reshape(leaf.shape))
        flat = np.frombuffer(entry.parts[0], np.float32)
        model = Model(unflatten(flat, Spec(tuple(leaves)), arrays))
        return bytes.fromhex(entry.about["hash"]), model
    except (StopIteration, *MALFORMED):
        store.damaged.append(ENTRY)
        return None
