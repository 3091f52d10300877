"""The server's half of decryption: ask who holds the key, believe what they agree on.

Under ``secure.key-holder = clients`` two nodes that took part decrypt every sum, and
their answers must be equal bit for bit; if they are not, or one does not answer or
refuses, others are asked, up to four. So one node that lies about a sum costs another
exchange and not the round. Two that lie alike can change a model; they could as well
have sent wrong updates. A decryptor is believed alone.

Who is asked follows from the model and the ``turn``, not from the cohort: a server that
was restarted asks the same nodes again, and they know which sums they have decrypted.
If as many as are ``believed`` say that another sum with some of the same nodes was
(``reopened``), nobody else is asked: two, or one where the server may have forgotten it
(:mod:`.told`). In that case they are asked one after the other: the second may not know
what the first does. The turn moves on, to other nodes, after a round that failed
otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from truststram.errors import ProtocolError
from truststram.exchange import Exchange, Phase

from .holder import nodes_hash, sum_dtype
from .identity import Roster
from .terms import OPEN, SUM, Request, Terms
from .wire import SECURE, Frame, frame_of, open_frame

__all__ = ["Opening", "Part"]

# How many nodes that hold the key must agree, and how often others are asked.
AGREE = 2
ATTEMPTS = 3
REOPENED = "reopened"


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
    asked : int
        Nodes that were asked for it.
    refused : dict
        Name of a node that signed a refusal -> its reason.
    reopened : bool
        A sum with some of these nodes was decrypted before.
    final : bool
        Nobody else is to be asked.
    result : integer array of shape (size,), or None
    """

    frames: Sequence[Frame]
    total: bytes
    size: int
    answers: dict[bytes, set[str]] = field(default_factory=dict)
    asked: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    reopened: bool = False
    final: bool = False
    result: NDArray[np.integer] | None = None

    @property
    def told(self) -> bool:
        """Whether anybody may have told the sum: not all who were asked refused."""
        return len(self.refused) < self.asked


class Opening:
    """Has the sums of one round decrypted, in at most four exchanges.

    Parameters
    ----------
    terms : Terms
    grid : Grid
    roster : Roster
    expected : mapping
        Fields of the header that all frames of the round have.
    request : Request
        The one for the round's updates.
    turn : int
        Another one asks the nodes in another order.
    believed : int
        How many must say ``reopened`` to end the search for others.

    Attributes
    ----------
    reasons : list of ProtocolError
        Why answers were not used.
    phases : list of Phase
        The exchanges.
    """

    def __init__(
        self,
        terms: Terms,
        grid: Grid,
        roster: Roster,
        expected: dict[str, str | int],
        request: Request,
        turn: int = 0,
        believed: int = 1,
    ) -> None:
        self._terms, self._grid, self._roster = terms, grid, roster
        self._expected = {**expected, "stage": SUM}
        self._request, self._turn, self._believed = request, turn, believed
        self._agree = 1 if terms.parameters.public else AGREE
        self.reasons: list[ProtocolError] = []
        self.phases: list[Phase] = []

    def __call__(self, parts: Sequence[Part], holders: Mapping[int, str]) -> None:
        """Decrypt ``parts``; those without a ``result`` afterwards could not be.

        Parameters
        ----------
        parts : sequence of Part
        holders : mapping
            Flower ids of nodes that have the key -> their names, which decide who is
            asked first: a node that was started again may have another id.
        """
        first = sorted(holders, key=lambda node: (self._rank(holders[node]), node))
        orders = [list(first) for _ in parts]
        deadline = self._terms.job.round.deadline
        exchange = Exchange(self._grid, deadline, 1.0, order=lambda n: (n, ""))
        careful = self._believed < self._agree
        for _ in range(ATTEMPTS + careful):
            messages = []
            for i, (part, order) in enumerate(zip(parts, orders, strict=True)):
                if not part.final:
                    best = max(map(len, part.answers.values()), default=0)
                    nodes = order[: 1 if careful else self._agree - best]
                    messages += [self._message(part, i, n) for n in nodes]
                    part.asked += len(nodes)
                    del order[: len(nodes)]
            phase = exchange(messages, lambda *_: None)
            self.phases.append(phase)
            for reply in phase.replies:
                self._take(reply, parts)
            if not messages or all(part.final for part in parts):
                return

    def _rank(self, name: str) -> bytes:
        text = f"{self._request.model} {self._turn} {name}"
        return hashlib.sha256(text.encode()).digest()

    def _message(self, part: Part, index: int, node: int) -> Message:
        adds = self._terms.adds
        request = Request(
            stage=OPEN,
            round=self._request.round,
            cohort=self._request.cohort,
            model=self._request.model,
            content=self._request.content,
            heads=() if adds else tuple(frame.head for frame in part.frames),
            total=b"" if adds else part.total,
            frames=tuple(f.head + f.body for f in part.frames) if adds else (),
            part=index,
        )
        content = RecordDict({SECURE: request.record()})
        group = str(self._request.round)
        return Message(content, node, "train", group_id=group)

    def _take(self, reply: Message, parts: Sequence[Part]) -> None:
        """Read one answer; what is wrong with it goes to ``reasons``."""
        try:
            if reply.has_error():
                raise ProtocolError("client-error", str(reply.error.reason)[:300])
            most = 8 * max(part.size for part in parts)
            data = frame_of(reply.content)
            frame = open_frame(data, self._roster, self._expected, most)
            about, index = frame.header.about, frame.header.about.get("part")
            if type(index) is not int or not 0 <= index < len(parts):
                raise ProtocolError("header", "not an answer to this request")
            part = parts[index]
            if frame.member.role != self._holder:
                raise ProtocolError("role", "not of a node that decrypts")
            if "refused" in about:
                code = str(about["refused"])[:40]
                part.refused[frame.member.name] = code
                said = list(part.refused.values()).count(REOPENED)
                part.reopened |= said >= self._believed
                part.final |= part.reopened
                raise ProtocolError("refused", f"a node says {code}")
            if about.get("nodes") != nodes_hash(part.frames):
                raise ProtocolError("header", "the sum of other nodes")
            width = np.dtype(sum_dtype(self._terms)).itemsize
            if len(frame.body) != width * part.size:
                raise ProtocolError("size", f"{len(frame.body)} bytes for a sum")
        except ProtocolError as error:
            self.reasons.append(error)
            return
        body = bytes(frame.body)
        part.answers.setdefault(body, set()).add(frame.member.name)
        if len(part.answers[body]) >= self._agree:
            part.result, part.final = np.frombuffer(body, sum_dtype(self._terms)), True

    @property
    def _holder(self) -> str:
        return "decryptor" if self._terms.parameters.public else "client"
