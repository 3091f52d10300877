"""What server and nodes of a secure sum agree on, and the request that names it.

Message format of a request
---------------------------
A train message with a ConfigRecord ``"secure"``:

``stage``   ``update``: train and send the frame of the update
            ``open``: decrypt a sum for the server
            ``hello``: say who you are (only where a decryptor must be found)
``round``   int
``cohort``  list of str, the Flower ids of the nodes that are asked for an update
``model``   str, hash of the arrays that come with ``update``
``content`` str, hash of all that comes with ``update`` (:mod:`.given`)

and for ``open`` also ``part`` (int, which of the round's sums), ``heads`` (list of
bytes: the signed heads of the frames in the sum), and ``sum`` (bytes) or ``frames``
(list of bytes: all of them). The answer is a frame of stage ``sum``, whose header has
``about.part`` and either ``about.nodes`` (hash of who is in the sum) or
``about.refused`` (the reason).

Everything is untrusted. The parameters are not part of it: each side has them from the
job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from truststram.errors import ProtocolError
from truststram.job import Job

from .given import hash_of_job
from .keys import parameters_of
from .parameters import Parameters
from .quantise import Quantiser
from .slots import Slots
from .wire import SECURE, Header, digest

__all__ = ["HELLO", "OPEN", "SUM", "UPDATE", "Request", "Terms"]

HELLO, UPDATE, OPEN, SUM = "hello", "update", "open", "sum"
STAGES = (HELLO, UPDATE, OPEN)
MAX_NODES = 100_000


@dataclass(frozen=True)
class Terms:
    """The settings of a secure sum under homomorphic encryption.

    Parameters
    ----------
    job : Job
    """

    job: Job

    @cached_property
    def parameters(self) -> Parameters:
        """Encryption parameters."""
        found = parameters_of(self.job)
        assert found is not None
        return found

    @cached_property
    def quantiser(self) -> Quantiser:
        """The grid of one client's values."""
        p = self.parameters
        return Quantiser(self.job.secure.clip, p.bits, p.most)

    @property
    def least(self) -> int:
        """Smallest number of nodes in a sum."""
        return self.job.secure.least

    @property
    def adds(self) -> bool:
        """Whether the decryptor adds the frames itself."""
        return self.job.secure.threat == "malicious"

    @cached_property
    def hash(self) -> str:
        """Hash of all settings that a frame depends on: those of the job."""
        return digest(self.parameters.hash.encode(), hash_of_job(self.job).encode())

    def slots(self, about: Any) -> Slots:
        """Return the places of a vector that a signed header describes.

        Raises
        ------
        ProtocolError
            ``header``, for a description that makes no sense.
        """
        return Slots.of(about, lambda _: self.quantiser)


@lru_cache(maxsize=4)
def terms_of(job: Job) -> Terms:
    """Return the terms of a job, computed once."""
    return Terms(job)


def label_of(header: Header) -> str:
    """Return what fixes the weights of the checksum of a round."""
    return f"{header.job} {header.round} {header.model}"


def cohort_hash(nodes: Sequence[str]) -> str:
    """Return the hash of a set of nodes."""
    return digest(*(node.encode() for node in sorted(nodes)))


@dataclass(frozen=True)
class Request:
    """What a node is asked for; see the module's docstring."""

    stage: str
    round: int
    cohort: tuple[str, ...] = ()
    model: str = ""
    content: str = ""
    heads: tuple[bytes, ...] = ()
    total: bytes = b""
    frames: tuple[bytes, ...] = ()
    part: int = 0

    @cached_property
    def cohort_hash(self) -> str:
        """Hash of the cohort."""
        return cohort_hash(self.cohort)

    @property
    def part_taken(self) -> str:
        """What a node remembers of what it trained for."""
        return f"{self.model} {self.content} {self.cohort_hash}"

    def record(self) -> ConfigRecord:
        """Return the record that carries this request."""
        values: dict[str, str | int | bytes | list[str] | list[bytes]] = {
            "stage": self.stage,
            "round": self.round,
            "cohort": list(self.cohort),
            "model": self.model,
            "content": self.content,
            "heads": list(self.heads),
            "sum": self.total,
            "frames": list(self.frames),
            "part": self.part,
        }
        # Flower cannot count the bytes of an empty list.
        return ConfigRecord({k: v for k, v in values.items() if v})

    @classmethod
    def of(cls, content: RecordDict) -> Request:
        """Return the request in a message.

        Raises
        ------
        ProtocolError
            ``request``, for a message without one or with a malformed one.
        """
        record = content.get(SECURE)
        if not isinstance(record, ConfigRecord):
            raise ProtocolError("request", "the server asks for no secure sum")
        get = record.get
        found = cls(
            stage=get("stage", ""),  # type: ignore[arg-type]  # checked below
            round=get("round", 0),  # type: ignore[arg-type]  # checked below
            cohort=_list(get("cohort", []), str),
            model=get("model", ""),  # type: ignore[arg-type]  # checked below
            content=get("content", ""),  # type: ignore[arg-type]  # checked below
            heads=_list(get("heads", []), bytes),
            total=get("sum", b""),  # type: ignore[arg-type]  # checked below
            frames=_list(get("frames", []), bytes),
            part=get("part", 0),  # type: ignore[arg-type]  # checked below
        )
        typed = (
            found.stage in STAGES
            and type(found.round) is int
            and type(found.part) is int
            and isinstance(found.model, str)
            and isinstance(found.content, str)
            and isinstance(found.total, bytes)
        )
        if not typed:
            raise ProtocolError("request", "a malformed request")
        return found


def _list(values: Any, kind: type) -> tuple[Any, ...]:
    if not isinstance(values, list) or len(values) > MAX_NODES:
        raise ProtocolError("request", "a malformed request")
    if not all(isinstance(value, kind) for value in values):
        raise ProtocolError("request", "a malformed request")
    return tuple(values)
