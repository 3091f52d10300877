"""What a node remembers so that it never helps to tell its own update from others'.

From two sums for the same model whose terms differ by one node the server could
subtract. So a node joins one cohort for a model, and whoever decrypts does so for sets
of nodes that are equal or have nobody in common. A set of an earlier model is decrypted
again only if it is exactly the same.

The memory belongs to the job's key, not to the run: another run under the same key
finds it. In a deployment it is the file ``journal.json`` in the node's folder of keys
and outlives the process; in a simulation it is in Flower's node state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context

from truststram.errors import CheckpointError, ProtocolError

from .wire import digest

__all__ = ["Journal"]

STATE = "truststram-secure"
MAX_FILE = 64 * 2**20
# Models whose sets of nodes are remembered name by name.
RECENT = 8
Memory = dict[str, Any]


class Journal:
    """The memory of one node under one key.

    Parameters
    ----------
    context : Context
        Used when ``folder`` is None.
    key : str
        Fingerprint of the key.
    folder : Path or None
    """

    def __init__(self, context: Context, key: str, folder: Path | None) -> None:
        self._context, self._key = context, key
        self._path = folder / "journal.json" if folder else None
        self._all = self._read()
        fresh: Memory = {"joined": {}, "opened": {}, "recent": {}}
        self._memory: Memory = self._all.setdefault(key, fresh)

    def join(self, model: str, cohort: str) -> None:
        """Take part in a sum.

        Raises
        ------
        ProtocolError
            ``cohort``, if this node was in another cohort for the same model.
        """
        known = self._memory["joined"].setdefault(model, cohort)
        if known != cohort:
            raise ProtocolError(
                "cohort", "this node has joined another set of nodes for this model"
            )
        self._write()

    def joined(self, model: str) -> str | None:
        """Return the cohort that this node joined for a model."""
        found: str | None = self._memory["joined"].get(model)
        return found

    def open(self, model: str, nodes: Iterable[str]) -> None:
        """Decrypt the sum of a set of nodes; remembered before it is done.

        Raises
        ------
        ProtocolError
            ``reopened``, for a set that shares nodes with another one of this model
            without being the same.
        """
        names = sorted(nodes)
        told = digest(*(name.encode() for name in names))
        opened = self._memory["opened"].setdefault(model, [])
        if told in opened:
            return
        recent = self._memory["recent"]
        before = set(recent.get(model, []))
        if (opened and model not in recent) or before & set(names):
            raise ProtocolError(
                "reopened", "another sum with some of these nodes was decrypted"
            )
        opened.append(told)
        recent[model] = [*before, *names]
        while len(recent) > RECENT:
            del recent[next(iter(recent))]
        self._write()

    def _read(self) -> dict[str, Memory]:
        if self._path is None:
            record = self._context.state.get(STATE)
            text = str(record["json"]) if isinstance(record, ConfigRecord) else "{}"
        elif self._path.exists():
            if self._path.stat().st_size > MAX_FILE:
                raise CheckpointError(f"{self._path} is too large.")
            text = self._path.read_text()
        else:
            text = "{}"
        try:
            found: dict[str, Memory] = json.loads(text)
        except ValueError:
            # Going on without a memory would make room for a second sum.
            raise CheckpointError(
                f"{self._path} is damaged: this node no longer knows which sums it "
                "joined. Make a new key for the job."
            ) from None
        return found

    def _write(self) -> None:
        text = json.dumps(self._all)
        if self._path is None:
            self._context.state[STATE] = ConfigRecord({"json": text})
            return
        fresh = self._path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with os.fdopen(os.open(fresh, flags, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
