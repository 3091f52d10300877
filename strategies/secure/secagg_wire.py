"""How the stages of a secure aggregation travel as Flower messages.

Message format
--------------
Every stage is a train message with a ConfigRecord ``"secure"``, so that any ClientApp
with a train function takes part:

``stage``   str, one of :data:`.secagg.STAGES`
``round``   int
``model``   str, hash of the global model, and
``content`` str, of all that comes with ``mask`` (:mod:`.given`)
``body``    bytes, what :class:`.secagg_server.Server` says; missing in ``keys``

Only the stage ``mask`` also carries the model and reaches the app. Replies are frames
(:mod:`.wire`) with the stage's body; that of ``mask`` is the masked vector of
:mod:`.slots`, little-endian words of 16, 32 or 64 bits, and its header says how long
the update is and which metrics follow it, and (:mod:`.whole`) the hash of the ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from truststram.errors import ConfigError, ProtocolError
from truststram.job import Job

from .given import hash_of_job
from .masks import word
from .quantise import Coder, Quantiser
from .secagg import STAGES, Session
from .slots import Slots
from .whole import WholeNumbers
from .wire import SECURE, Header, digest

__all__ = ["KEYS", "MASK", "SCHEME", "Request", "Settings", "word_of"]

SCHEME = "secagg"
KEYS, MASK = "keys", "mask"
HASH_DIGITS = 64  # hexadecimal
# A vector word as wide as a float32: uploads are no larger than without masks.
WIDTH, MOST_BITS = 32, 31


@dataclass(frozen=True)
class Settings:
    """What all clients of a job's sums have in common.

    Parameters
    ----------
    job : Job
    encoder : callable, optional
        ``encoder(n)`` encodes updates of n values, in the place of the quantiser:
        whoever adds noise to them also makes integers of them.
    whole : WholeNumbers, optional
        Clients have integers instead of updates (:mod:`.whole`). A server knows it for
        the run, a node when its app has replied: the vector's header tells.

    Raises
    ------
    ConfigError
        For integers that nobody adds the noise to that ``encoder`` is there for.
    """

    job: Job
    encoder: Callable[[int], Coder] | None = None
    whole: WholeNumbers | None = None

    def __post_init__(self) -> None:
        if self.encoder and self.whole:
            raise ConfigError(
                "The job's noise is added to updates, and the app has integers."
            )

    def coder(self, values: int) -> Coder:
        """Return what makes integers of updates of so many values."""
        if self.whole:
            return self.whole
        return self.encoder(values) if self.encoder else self.quantiser

    @cached_property
    def quantiser(self) -> Quantiser:
        """As many bits a value as sums of ``secure.max-cohort`` clients leave."""
        most = self.job.secure.max_cohort
        bits = min(WIDTH - (most - 1).bit_length(), MOST_BITS)
        return Quantiser(self.job.secure.clip, bits, most)

    @cached_property
    def hash(self) -> str:
        """Hash of everything a frame depends on: the job, and who makes integers."""
        about = [SCHEME, self.quantiser, self.encoder is not None]
        return digest(repr(about).encode(), hash_of_job(self.job).encode())

    def session(self, run: str, request: Request) -> Session:
        """Return the sum that a request is about."""
        keys = self.job.secure
        parts = (self.hash, request.model, request.content)
        given = digest(*(part.encode() for part in parts))
        sizes = (keys.least, keys.max_cohort, keys.colluders)
        return Session(run, request.round, bytes.fromhex(given), keys.threat, *sizes)

    def header(self, run: str, request: Request, cohort: str, **about: Any) -> Header:
        """Return the header of a frame of this job."""
        return Header(
            scheme=SCHEME,
            job=run,
            round=request.round,
            stage=request.stage,
            node="",
            cohort=cohort,
            model=request.model,
            content=request.content,
            key="",
            parameters=self.hash,
            about=about,
        )

    def about(self, values: int, metrics: Iterable[str]) -> dict[str, Any]:
        """Return the description of a vector, for its signed header."""
        whole = {"integers": self.whole.digest} if self.whole else {}
        return {"values": values, "metrics": sorted(metrics), **whole}

    def slots(self, about: Any) -> Slots:
        """Return the places of a vector that a signed header describes.

        Raises
        ------
        ProtocolError
            ``header``, for a description that makes no sense.
        """
        # A sum with a mask left in it is out of range everywhere, so a checksum would
        # show nothing more, and digits of it are not sums of the updates.
        found = Slots.of(about, self.coder, checked=False)
        values = self.whole.size if self.whole else found.values
        if about != self.about(values, found.metrics):
            raise ProtocolError("header", "no description of such an update")
        return found


def word_of(slots: Slots) -> np.dtype[Any]:
    """Return the type of the masked values, whoever encoded them."""
    return word(slots.quantiser.width)


def label_of(session: Session) -> str:
    """Return what fixes the weights of the checksum of a round."""
    return session.tag.hex()


@dataclass(frozen=True)
class Request:
    """What a node is asked for; see the module's docstring."""

    stage: str
    round: int
    model: str
    body: bytes = b""
    content: str = ""

    def at(self, stage: str, body: bytes = b"") -> Request:
        """Return the request of another stage of the same round."""
        return replace(self, stage=stage, body=body)

    def record(self) -> ConfigRecord:
        """Return the record that carries this request."""
        texts = {"stage": self.stage, "model": self.model, "content": self.content}
        record = ConfigRecord({**texts, "round": self.round})
        if self.body:  # Flower 1.41 cannot measure an empty value
            record["body"] = self.body
        return record

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
        stage, number = record.get("stage"), record.get("round")
        model, given = record.get("model"), record.get("content")
        body = record.get("body", b"")
        if stage not in STAGES or type(number) is not int or number < 0:
            raise ProtocolError("request", "a malformed request")
        if not (isinstance(body, bytes) and _is_hash(model) and _is_hash(given)):
            raise ProtocolError("request", "a malformed request")
        return cls(str(stage), number, str(model), body, str(given))


def _is_hash(text: object) -> bool:
    """Return whether ``text`` is a SHA-256 as :func:`.wire.digest` writes it."""
    if not isinstance(text, str) or len(text) != HASH_DIGITS:
        return False
    return not set(text) - set("0123456789abcdef")
