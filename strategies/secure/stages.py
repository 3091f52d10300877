"""Stages of a secure aggregation over a Grid: ask nodes, wait with an end, verify.

A stage is one exchange of train messages (:mod:`truststram.exchange`), over when all
have answered or at the deadline. Whoever is silent, fails or sends something that is
not its own signed frame of this very stage has dropped out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from truststram.errors import ProtocolError
from truststram.exchange import Exchange

from .federation import Federation
from .identity import CLIENT
from .secagg_wire import Request, Settings
from .telling import Telling
from .wire import SECURE, Frame, frame_of, open_frame

__all__ = ["Stages"]


@dataclass
class Stages:
    """Exchanges of one round.

    Parameters
    ----------
    federation : Federation
        Grid, roster, and which node has which key.
    settings : Settings
    request : Request
        Of any stage of this round.
    telling : Telling
    """

    federation: Federation
    settings: Settings
    request: Request
    telling: Telling

    def ask(
        self,
        stage: str,
        bodies: Mapping[int, bytes],
        cohorts: Mapping[int, str],
        most: int,
    ) -> dict[int, bytes]:
        """Return the body of each node that answered as it must.

        Parameters
        ----------
        stage : str
        bodies : mapping
            Node -> what it is told.
        cohorts : mapping
            Node -> hash of its cohort, which its frame must name.
        most : int
            Largest body that is accepted, in bytes.
        """
        grid: Grid = self.federation.grid
        group = str(self.request.round)
        contents: dict[bytes, RecordDict] = {}  # one for all who are told the same
        messages = []
        for node, body in bodies.items():
            if body not in contents:
                record = self.request.at(stage, body).record()
                contents[body] = RecordDict({SECURE: record})
            messages.append(Message(contents[body], node, "train", group_id=group))
        deadline = self.settings.job.round.deadline
        exchange = Exchange(grid, deadline, 1.0, order=lambda node: (node, ""))
        phase = exchange(messages, lambda *_: None)
        answers = {}
        for reply in phase.replies:
            node = reply.metadata.src_node_id
            try:
                frame = self.verified(stage, reply, cohorts.get(node, ""), most)
                answers[node] = bytes(frame.body)
            except ProtocolError as error:
                self.telling.drop(stage, node, error)
        self.telling.stage(stage, len(answers), phase)
        return answers

    def verified(self, stage: str, reply: Message, cohort: str, most: int) -> Frame:
        """Return the frame of a reply whose sender signed it for this stage.

        Raises
        ------
        ProtocolError
            ``client-error`` for an error reply, or what is wrong with the frame.
        """
        if reply.has_error():
            text = f"{reply.error.code}: {reply.error.reason or ''}"
            raise ProtocolError("client-error", text[:300])
        request, run = self.request.at(stage), self.federation.run
        header = self.settings.header(run, request, cohort)
        names = ("scheme", "job", "round", "stage", "cohort", "model", "content")
        expected = {n: getattr(header, n) for n in (*names, "parameters")}
        roster = self.federation.roster
        frame = open_frame(frame_of(reply.content), roster, expected, most)
        if frame.member.role != CLIENT:
            raise ProtocolError("role", "not a client by the roster")
        self.federation.bind(reply.metadata.src_node_id, frame.member)
        return frame
