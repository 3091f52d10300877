"""The server's half of decryption: ask who holds the key, believe what they agree on.

Under ``secure.key-holder = clients`` two nodes that took part decrypt every sum, and
their answers must be equal bit for bit; if they are not, or one does not answer, others
are asked. One node that lies about a sum can so delay a round and not change a model.
Two that lie alike can; they could as well have sent wrong updates. A decryptor is
believed alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from truststram.errors import ProtocolError
from truststram.exchange import Exchange

from .holder import nodes_hash, sum_dtype
from .identity import Roster
from .terms import OPEN, SUM, Request, Terms
from .wire import SECURE, Frame, frame_of, open_frame

__all__ = ["Opening", "Part"]

# How many nodes that hold the key must agree, and how often others are asked.
AGREE = 2
ATTEMPTS = 3


@dataclass
class Part:
    """One sum that is to be decrypted, and what came back.

    Attributes
    ----------
    frames : sequence of Frame
        What is in it.
    total : bytes
        The encrypted sum.
    size : int
        Places of the vector.
    answers : dict
        Decrypted sum -> names of who signed it.
    result : integer array of shape (size,), or None
    """

    frames: Sequence[Frame]
    total: bytes
    size: int
    answers: dict[bytes, set[str]] = field(default_factory=dict)
    result: NDArray[np.integer] | None = None


class Opening:
    """Has the sums of one round decrypted, in at most three exchanges.

    Parameters
    ----------
    terms : Terms
    grid : Grid
    roster : Roster
    expected : mapping
        Fields of the header that all frames of the round have.
    request : Request
        The one for the round's updates.

    Attributes
    ----------
    reasons : list of ProtocolError
        Why answers were not used.
    bytes_down, bytes_up : int
        Payload of the exchanges.
    """

    def __init__(
        self,
        terms: Terms,
        grid: Grid,
        roster: Roster,
        expected: dict[str, str | int],
        request: Request,
    ) -> None:
        self._terms, self._grid, self._roster = terms, grid, roster
        self._expected = {**expected, "stage": SUM}
        self._request = request
        self.reasons: list[ProtocolError] = []
        self.bytes_down = self.bytes_up = 0

    def __call__(self, parts: Sequence[Part], holders: Sequence[int]) -> None:
        """Decrypt ``parts``; those without a ``result`` afterwards could not be.

        Parameters
        ----------
        parts : sequence of Part
        holders : sequence of int
            Flower ids of nodes that have the key.
        """
        agree = 1 if self._terms.parameters.public else AGREE
        # Whom to ask is no secret, but nobody should know it before the updates come.
        orders = [random.SystemRandom().sample(holders, len(holders)) for _ in parts]
        deadline = self._terms.job.round.deadline
        exchange = Exchange(self._grid, deadline, 1.0, order=lambda n: (n, ""))
        for _ in range(ATTEMPTS):
            messages = []
            for part, order in zip(parts, orders, strict=True):
                if part.result is None:
                    missing = agree - max(map(len, part.answers.values()), default=0)
                    messages += [self._message(part, n) for n in order[:missing]]
                    del order[:missing]
            phase = exchange(messages, lambda *_: None)
            self.bytes_down += phase.bytes_down
            self.bytes_up += phase.bytes_up
            for reply in phase.replies:
                self._take(reply, parts, agree)
            if not messages or all(part.result is not None for part in parts):
                return

    def _message(self, part: Part, node: int) -> Message:
        adds = self._terms.job.secure.threat == "malicious"
        whole = tuple(frame.head + frame.body for frame in part.frames)
        request = Request(
            stage=OPEN,
            round=self._request.round,
            cohort=self._request.cohort,
            model=self._request.model,
            heads=() if adds else tuple(frame.head for frame in part.frames),
            total=b"" if adds else part.total,
            frames=whole if adds else (),
        )
        content = RecordDict({SECURE: request.record()})
        group = str(self._request.round)
        return Message(content, node, "train", group_id=group)

    def _take(self, reply: Message, parts: Sequence[Part], agree: int) -> None:
        """Read one answer; what is wrong with it goes to ``reasons``."""
        try:
            if reply.has_error():
                raise ProtocolError("client-error", str(reply.error.reason)[:300])
            most = 8 * max(part.size for part in parts)
            data = frame_of(reply.content)
            frame = open_frame(data, self._roster, self._expected, most)
            told = frame.header.about.get("nodes")
            part = next((p for p in parts if nodes_hash(p.frames) == told), None)
            if part is None or frame.member.role != self._holder:
                raise ProtocolError("header", "not an answer to this request")
            width = np.dtype(sum_dtype(self._terms)).itemsize
            if len(frame.body) != width * part.size:
                raise ProtocolError("size", f"{len(frame.body)} bytes for a sum")
        except ProtocolError as error:
            self.reasons.append(error)
            return
        body = bytes(frame.body)
        part.answers.setdefault(body, set()).add(frame.member.name)
        if len(part.answers[body]) >= agree:
            part.result = np.frombuffer(body, sum_dtype(self._terms))

    @property
    def _holder(self) -> str:
        return "decryptor" if self._terms.parameters.public else "client"
