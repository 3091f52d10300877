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

Not compared, because the code that would compare them comes the same way: the app
itself, and run config keys of an app of your own that are not in the job.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Message

from truststram.errors import ProtocolError, RunError
from truststram.job import Job
from truststram.records import records_of

from .wire import SECURE, digest

__all__ = ["Given", "check_given", "given_by", "hash_of_job", "hash_of_model"]


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
        one model.
    """
    known: dict[int, str] = {}  # records that many messages share are hashed once
    parts = [_hashes(message, known) for message in messages]
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
        ``model`` or ``content``, if it gives something else.
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
    """Return the hash of all settings of a job."""
    return digest(json.dumps(job.config(), sort_keys=True).encode())


def hash_of_model(arrays: ArrayRecord) -> str:
    """Return the hash of a model as it travels: names, dtypes, shapes and bytes."""
    parts = []
    for name, array in arrays.items():
        about = json.dumps([name, array.dtype, list(array.shape), array.stype])
        parts += [about.encode(), array.data]
    return digest(*parts)


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
