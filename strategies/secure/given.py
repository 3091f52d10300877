"""What the nodes of a sum are given to train with, as hashes that they compare.

A server that gives nodes different models can tell their updates apart in a sum
(Pasquini, Francati and Ateniese, "Eluding Secure Aggregation in Federated Learning via
Model Inconsistency", CCS 2022). Different settings do the same: if all nodes but one
train with a learning rate of 0, the sum is the update of that one. So what is compared
is everything that reaches the app.

Two hashes, because they are for two things. What a node remembers of the sums it opened
is about the *model*: the same model with another configuration does not make room for a
sum of other nodes (:mod:`.journal`). What is signed and relayed, so that nodes refuse a
sum in which others were given something else, is also about the *content*: the
message's type and group and every record but the request itself, by name, kind, order,
keys, types and values. The job, which nodes have from their run config, is in the hash
of the parameters that frames are signed with (:func:`hash_of_job`).

Not compared
------------
- Because the code that would compare them comes the same way: the app itself, and run
  config keys of an app of your own that are not in the job.
- Because they may differ: settings that name places on one machine (:data:`LOCAL`).
- Because every message has others: its id, when it was made and how long it is valid
  (``message_id``, ``created_at``, ``ttl``), and who sends and gets it.
- Because it is not in the message: Flower's Context. The ids of node and run come from
  the SuperLink, node config and state from the node.

An app that lets its training depend on one of these lets the server tell nodes apart.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from numpy.typing import NDArray

from truststram.errors import ProtocolError, RunError
from truststram.job import Job
from truststram.records import records_of, view

from .wire import SECURE, digest

__all__ = ["Given", "check_given", "given_by", "hash_of_job", "hash_of_model"]

NUMBERS = "biufc"  # kinds of NumPy's types
# Settings that are about one machine and do not reach training.
LOCAL = frozenset({"data.path", "run.dir", "run.id", "run.resume"})


@dataclass(frozen=True)
class Given:
    """What a node is given, or all nodes of a round are.

    Attributes
    ----------
    model : str
        Hash of the arrays of the model; empty if nobody is given anything.
    content : str
        Hash of everything that reaches the app, the model included.
    """

    model: str = ""
    content: str = ""


def given_by(messages: Sequence[Message]) -> Given:
    """Return what all ``messages`` give alike.

    Raises
    ------
    RunError
        If two give different things, which names the record, or one gives not exactly
        one model, or arrays that nodes would refuse to read.
    """
    known: dict[int, str] = {}  # records that many messages share are hashed once
    try:
        parts = [_hashes(message, known) for message in messages]
    except ProtocolError as error:
        raise RunError(
            f"Nodes would not read the arrays of a message: {error}. Under a secure "
            "sum these are arrays of numbers in NumPy's format."
        ) from None
    if not parts:
        return Given()
    for found in parts[1:]:
        if _joined(found) != _joined(parts[0]):
            raise RunError(
                "Nodes of one round would be sent different messages "
                f"({_difference(parts[0], found)}); under a secure sum they compare "
                "what they were sent."
            )
    models = records_of(messages[0].content, ArrayRecord)
    if len(models) != 1:
        raise RunError(
            f"A message has {len(models)} array records; under a secure sum a node "
            "gets one model. Use a strategy that sends one."
        )
    return Given(known[id(models[0])], _joined(parts[0]))


def check_given(message: Message, model: str, content: str) -> ArrayRecord:
    """Return the model of a message that gives what was announced.

    Raises
    ------
    ProtocolError
        ``model`` or ``content``, if it gives something else, or as
        :func:`hash_of_model`.
    """
    known: dict[int, str] = {}
    found = _joined(_hashes(message, known))
    models = records_of(message.content, ArrayRecord)
    if len(models) != 1 or known[id(models[0])] != model:
        raise ProtocolError("model", "the model is not the one that was announced")
    if found != content:
        raise ProtocolError(
            "content", "what comes with the model is not what was announced"
        )
    return models[0]


def hash_of_job(job: Job) -> str:
    """Return the hash of a job's settings.

    Left out is what names a place on one machine: ``data.path`` (a simulated node's; a
    deployed one has its own), and ``run.dir``, ``run.id`` and ``run.resume``, the
    server's folder of a run. Two of them may differ where the same is trained.
    """
    kept = {key: value for key, value in job.config().items() if key not in LOCAL}
    return digest(json.dumps(kept, sort_keys=True).encode())


def hash_of_model(arrays: ArrayRecord) -> str:
    """Return the hash of a model: names, types, shapes and values, in order.

    However the values are written: another version of the ``.npy`` header, the order of
    Fortran or the other byte order make no other model of them. Values differ if their
    bits do.

    Raises
    ------
    ProtocolError
        ``stype``, ``dtype``, ``shape``, ``header`` or ``size``, for an array that is
        not what it says, or not one of numbers.
    """
    parts: list[bytes | memoryview] = []
    for name, array in arrays.items():
        values = _values(array)
        about = json.dumps([name, values.dtype.str, values.shape])
        # An empty array has no bytes that a view could be of.
        flat = values.reshape(-1).view(np.uint8)
        parts += [about.encode(), flat.data if flat.size else b""]
    return digest(*parts)


def _values(array: Array) -> NDArray[np.generic]:
    """Return the values of an untrusted array, little-endian and in C order.

    Without a copy if they are written like that.
    """
    try:
        dtype, shape = np.dtype(array.dtype), tuple(map(int, array.shape))
        if dtype.kind not in NUMBERS or any(length < 0 for length in shape):
            raise ProtocolError("dtype", "not an array of numbers")
        values = view(array, array.dtype, shape)
    except (TypeError, ValueError, OverflowError):
        raise ProtocolError("dtype", "no array that NumPy has") from None
    return values.astype(dtype.newbyteorder("<"), order="C", copy=False)


def _hashes(message: Message, known: dict[int, str]) -> dict[str, str]:
    """Return what each part of a message is, by the name that an error gives it."""
    about = message.metadata
    found = {"type": about.message_type, "group": about.group_id}
    for name, record in message.content.items():
        if name != SECURE:
            if id(record) not in known:
                known[id(record)] = _hash_of(record)
            found[f"record {name!r}"] = f"{type(record).__name__} {known[id(record)]}"
    return found


def _hash_of(record: Any) -> str:
    """Return the hash of a record: of arrays, that of a model."""
    if isinstance(record, ArrayRecord):
        return hash_of_model(record)
    return digest(*_entries(record.items()))


def _entries(items: Iterable[tuple[str, Any]]) -> Iterator[bytes]:
    for key, value in items:
        yield key.encode()
        yield _encoded(value)


def _encoded(value: Any) -> bytes:
    """Return bytes that no value of another type, and no other of its type, has."""
    if isinstance(value, list):
        return b"list " + digest(*map(_encoded, value)).encode()
    kind = type(value).__name__.encode() + b" "
    if isinstance(value, bytes):
        return kind + value
    if isinstance(value, float):  # not a number has many forms, and all are different
        return kind + struct.pack(">d", value)
    return kind + str(value).encode()


def _joined(hashes: dict[str, str]) -> str:
    return digest(*(text.encode() for pair in hashes.items() for text in pair))


def _difference(one: dict[str, str], other: dict[str, str]) -> str:
    """Return the name of the first part in which two messages differ."""
    for name in [*one, *other]:
        if one.get(name) != other.get(name):
            return name
    return "order of records"
