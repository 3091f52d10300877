"""What both halves of a secure sum's server tell of a round, as events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from truststram.errors import ProtocolError
from truststram.exchange import Phase

from ..base import Emit

__all__ = ["Telling"]


@dataclass(frozen=True)
class Telling:
    """Events of one round.

    Parameters
    ----------
    emit : callable
        Gets ``secure-stage`` (round, stage, asked, answered, bytes_down, bytes_up),
        ``reply-dropped`` (round, phase, node, code, detail), ``secure-refused``
        (round, code, detail), ``secure-sum`` (round, clients, clipped) and
        ``secure-groups`` (round, groups).
    name_of : callable
        Node id -> stable name.
    round : int
    """

    emit: Emit
    name_of: Callable[[int], str]
    round: int

    def stage(self, stage: str, answered: int, phase: Phase) -> None:
        """Tell what was exchanged besides train messages and their replies."""
        self.emit(
            "secure-stage",
            round=self.round,
            stage=stage,
            asked=len(phase.replies) + phase.lost,
            answered=answered,
            bytes_down=phase.bytes_down,
            bytes_up=phase.bytes_up,
        )

    def drop(self, phase: str, node: int, error: ProtocolError) -> None:
        """Tell that a node's reply is not used."""
        self.emit(
            "reply-dropped",
            round=self.round,
            phase=phase,
            node=self.name_of(node),
            code=error.code,
            detail=error.detail,
        )

    def refuse(self, error: ProtocolError) -> None:
        """Tell that a sum will not be opened."""
        self.emit(
            "secure-refused", round=self.round, code=error.code, detail=error.detail
        )

    def groups(self, members: list[list[str]]) -> None:
        """Tell who is in which group of this round."""
        self.emit("secure-groups", round=self.round, groups=members)

    def sum(self, clients: int, clipped: int, values: int) -> None:
        """Tell that a sum was opened.

        Parameters
        ----------
        clients : int
        clipped : int
            Values beyond the clip, over all clients.
        values : int
            Values of each client.
        """
        part = round(clipped / max(values * clients, 1), 6)
        self.emit("secure-sum", round=self.round, clients=clients, clipped=part)
