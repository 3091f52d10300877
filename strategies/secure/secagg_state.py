"""Where a node keeps the secrets of the round it is in, from stage to stage.

In a deployment every message is answered by a process of its own, so the state is a
file in the node's folder of keys, one for each run: mode 0600, replaced as a whole, and
taken away before a stage is answered. A node that dies while it answers has dropped out
of the sum; none ever answers a stage twice, also if two processes try. A message of
another sum leaves the state alone.

If the server is gone before the sum is opened, the file stays: until the next round of
the run, or until any sum of this node a day later. Before the node has masked its
update it holds keys that would only ever unmask what was never sent.

In simulations the state is in Flower's node state, which leaves the simulated node for
the process that runs the simulation: one machine plays everybody there.
"""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import ConfigRecord, Context

from truststram.durable import alone, sync
from truststram.errors import ProtocolError

from .private_files import read_secret, write

__all__ = ["RoundState"]

STATE, FILE, LOCK = "truststram-secagg", "secagg.state", "secagg.lock"
TAG_BYTES = 32
# Seconds after which the state of another run is that of one that died.
STALE = 24 * 3600


class RoundState:
    """The state of one node in the sum of one round.

    Parameters
    ----------
    context : Context
        Its run names the file; used in the file's place when ``folder`` is None.
    folder : Path or None
    """

    def __init__(self, context: Context, folder: Path | None) -> None:
        self._context, self._folder = context, folder
        name = f"{FILE}-{context.run_id:x}"
        self._path = folder / name if folder else None

    def take(self, tag: bytes) -> bytes:
        """Return the state and forget it.

        Parameters
        ----------
        tag : bytes
            32 bytes, of the sum that the state must be of.

        Raises
        ------
        ProtocolError
            ``stage``, if there is none: the node is in no sum; ``session``, if it is
            of another sum and stays.
        """
        if self._path is None:
            return self._take_record(tag)
        with alone(self._path.with_name(LOCK)):
            if not self._path.exists():
                raise _missing()
            try:
                state = read_secret(self._path)
            except Exception:
                self._remove()
                raise
            found = _of(tag, state)
            self._remove()
        return found

    def put(self, tag: bytes, state: bytes) -> None:
        """Keep a state, in the place of any other of this run, until it is taken."""
        if self._path is None:
            self._context.state[STATE] = ConfigRecord({"state": tag + state})
            return
        with alone(self._path.with_name(LOCK)):
            self._clean()
            write(self._path, tag + state)

    def _take_record(self, tag: bytes) -> bytes:
        record = self._context.state.get(STATE)
        if not isinstance(record, ConfigRecord):
            raise _missing()
        found = _of(tag, bytes(record["state"]))  # type: ignore[arg-type]  # written by put
        del self._context.state[STATE]
        return found

    def _remove(self) -> None:
        assert self._path is not None
        self._path.unlink()
        sync(self._path.parent)  # it must not come back after a power cut

    def _clean(self) -> None:
        """Remove what runs that died have left."""
        assert self._folder is not None
        for path in self._folder.glob(f"{FILE}*"):
            if path.lstat().st_mtime < time.time() - STALE:
                path.unlink()


def _missing() -> ProtocolError:
    return ProtocolError("stage", "this node is in no sum, or has left it")


def _of(tag: bytes, state: bytes) -> bytes:
    """Return what follows the tag, if it is the right one."""
    if state[:TAG_BYTES] != tag:
        raise ProtocolError("session", "this node is in another sum")
    return state[TAG_BYTES:]
