"""Where a node keeps the secrets of the round it is in, from stage to stage.

In a deployment every message is answered by a process of its own, so the state is a
file in the node's folder of keys: mode 0600, replaced as a whole, and taken away before
a stage is answered. A node that dies while it answers has dropped out of the sum; none
ever answers a stage twice. In simulations the state is in Flower's node state, which
leaves the simulated node for the process that runs the simulation: one machine plays
everybody there.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import ConfigRecord, Context

from truststram.errors import ProtocolError

from .identity import read_secret

__all__ = ["RoundState"]

STATE, FILE = "truststram-secagg", "secagg.state"


class RoundState:
    """The state of one node in the sum of one round.

    Parameters
    ----------
    context : Context
        Used when ``folder`` is None.
    folder : Path or None
    """

    def __init__(self, context: Context, folder: Path | None) -> None:
        self._context, self._folder = context, folder

    def take(self) -> bytes:
        """Return the state and forget it.

        Raises
        ------
        ProtocolError
            ``stage``, if there is none: the node is in no sum.
        """
        state = self._take_file() if self._folder else self._take_record()
        if state is None:
            raise ProtocolError("stage", "this node is in no sum, or has left it")
        return state

    def put(self, state: bytes) -> None:
        """Keep a state, in the place of any other, until it is taken."""
        if self._folder is None:
            self._context.state[STATE] = ConfigRecord({"state": state})
            return
        fresh = self._folder / f"{FILE}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._folder / FILE)

    def _take_record(self) -> bytes | None:
        record = self._context.state.pop(STATE, None)
        return bytes(record["state"]) if isinstance(record, ConfigRecord) else None  # type: ignore[arg-type]  # written by put

    def _take_file(self) -> bytes | None:
        assert self._folder is not None
        path = self._folder / FILE
        if not path.exists():
            return None
        try:
            return read_secret(path)
        finally:
            path.unlink()
            folder = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)  # it must not come back after a power cut
            finally:
                os.close(folder)
