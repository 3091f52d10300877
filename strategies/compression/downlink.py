"""The downlink chain: one model that every node can follow with small steps.

Philippenko and Dieuleveut, "Preserved Central Model for Faster Bidirectional
Compression in Distributed Settings", NeurIPS 2021: the server keeps its exact model and
only the nodes' copy of it is an approximation. Differences: local steps instead of
gradients, and nodes that come and go.

Mathematics (shapes (d,))
-------------------------
The server's model is x_t; nodes train from ``M_t = M_(t-1) + Q(x_t - M_(t-1))``, with
``M_0 = x_0`` sent as it is. What Q left out is part of the next difference, so the
error does not add up. The server adds the aggregated update to x_t, not to M_t.

A node that has M_s gets the steps s+1 to t, or all of M_t if that is smaller. Models
are named by a hash of their values: a node never trains from another model than the
server thinks of, and one that cannot make it says so and gets all of it next time.
"""

from __future__ import annotations

import hashlib

import numpy as np

from truststram.records import Float32, Spec, view

from ..update import Model
from . import wire
from .messages import HASH_BYTES

__all__ = ["DOWNLINK", "model_hash", "parts_of", "unpacked"]

# Codecs of steps; a decoder accepts no others.
DOWNLINK = ("q8", "topk-q8", "eden-2")


def model_hash(model: Model) -> bytes:
    """Return 16 bytes that name a model's form and values.

    Of floating-point arrays the values as float32 count, which is what the chain has.
    """
    digest = hashlib.sha256(model.spec.digest.encode())
    for part in parts_of(model):
        digest.update(part)
    return digest.digest()[:HASH_BYTES]


def parts_of(model: Model) -> list[memoryview]:
    """Return the flat vector and the arrays that are not part of it, as bytes."""
    others = [
        view(model.arrays[leaf.name], leaf.dtype, leaf.shape)
        for leaf in model.spec.leaves
        if not leaf.is_float
    ]
    return [
        np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        for values in (model.flat, *others)
    ]


def unpacked(frame: bytes, spec: Spec) -> Float32:
    """Return the difference that a step stands for, shape (d,).

    Raises
    ------
    ProtocolError
        As :func:`.wire.unpack`.
    """
    name = wire.spec_hash(spec)
    return wire.unpack(frame, d=spec.size, spec_hash=name, allowed=DOWNLINK)
