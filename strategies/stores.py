"""Where a node's memory is kept: with Flower in simulations, in a folder otherwise.

In a simulation it is ``context.state``, which Flower keeps for the run. In a deployment
that dies with the SuperNode, so it is a folder: node config ``state-path``, else
``truststram`` in the user's state folder; with a folder for each node in it, and in
that one for each of the node's last jobs (:func:`store_of`), or for every run there
ever was (:func:`store_for_good`). A node is known by its Flower id, which stays only
with Flower's authentication of SuperNodes: without it a SuperNode has another one after
each start, and begins with an empty memory.

Guarantees
----------
A file is written beside its place, fsynced, renamed, and the folder is fsynced: after a
crash the entry is the old one or the new one. Only the user can read it: files are
0600, every folder that has to be made is 0700.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from flwr.app import ConfigRecord, Context

from truststram import durable
from truststram._flower import in_simulated_node
from truststram.errors import DataError, ProtocolError

from .memory import FIXED, Part, Store, description_size

__all__ = [
    "ContextStore",
    "FolderStore",
    "node_name",
    "store_for_good",
    "store_of",
]

JOB_ID = re.compile(r"[0-9a-f]{32}")
# Jobs whose folders a node keeps; one that takes part in more at a time forgets.
KEPT_JOBS = 4
# Seconds after which a partial file that nobody writes to is of a killed process.
ABANDONED = 600
LOCK = "lock"


class ContextStore(Store):
    """Entries in ``context.state``: as durable as Flower keeps it."""

    def __init__(self, context: Context, job: str) -> None:
        super().__init__()
        self._state, self._prefix = context.state, f"truststram-{job}-"

    def drop(self, name: str) -> None:
        """Forget an entry."""
        if self._prefix + name in self._state:
            del self._state[self._prefix + name]

    def _head(self, name: str) -> tuple[bytes, int] | None:
        record = self._state.get(self._prefix + name)
        if not isinstance(record, ConfigRecord):
            return None
        return _bytes(record, "head"), len(_bytes(record, "body")) - 1

    def _body(self, name: str, start: int, size: int) -> bytes:
        record = self._state[self._prefix + name]
        return _bytes(cast(ConfigRecord, record), "body")[:size]

    def _write(self, name: str, head: bytes, parts: Sequence[Part]) -> None:
        body = b"".join((*parts, b"\0"))  # a record holds no empty values
        record = ConfigRecord({"head": head, "body": body})
        self._state[self._prefix + name] = record


def _bytes(record: ConfigRecord, key: str) -> bytes:
    return cast(bytes, record[key])


class FolderStore(Store):
    """Entries as files of a folder of this node and job.

    Parameters
    ----------
    base : Path
        The state folder of this machine.
    node : str
        Name of the node: letters, digits, '-' and '_'.
    job : str
        32 hexadecimal digits.
    kept : int or None
        How many jobs' folders the node keeps; None for all.
    """

    def __init__(
        self, base: Path, node: str, job: str, kept: int | None = KEPT_JOBS
    ) -> None:
        super().__init__()
        self._node, self._kept = base / node, kept
        self._folder = self._node / job

    @property
    def others(self) -> int:
        """How many other jobs this node remembers."""
        return len([path for path in self._jobs() if path != self._folder])

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process is inside; see :meth:`Store.alone`."""
        with contextlib.ExitStack() as held:
            try:
                if not self._folder.exists():
                    self._make()
                held.enter_context(durable.alone(self._folder / LOCK))
            except OSError as error:
                raise self._unwritable(error) from error
            yield

    def drop(self, name: str) -> None:
        """Remove an entry's file."""
        (self._folder / name).unlink(missing_ok=True)

    def _head(self, name: str) -> tuple[bytes, int] | None:
        try:
            with (self._folder / name).open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                start = file.read(FIXED)
                text = file.read(min(description_size(start), total))
        except FileNotFoundError:
            return None
        return start + text, total - len(start) - len(text)

    def _body(self, name: str, start: int, size: int) -> bytes:
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def _write(self, name: str, head: bytes, parts: Sequence[Part]) -> None:
        path = self._folder / name
        partial = self._folder / f".{name}.{os.getpid()}"
        try:
            if not self._folder.exists():
                self._make()
            self._tidy()
            durable.replace(path, (head, *parts), partial=partial, mode=0o600)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"The node's state folder {self._node} cannot be written: "
            f"{error.strerror}. Free space, or set state-path in the node config."
        )

    def _jobs(self) -> list[Path]:
        if not self._node.exists():
            return []
        return [p for p in self._node.iterdir() if JOB_ID.fullmatch(p.name)]

    def _make(self) -> None:
        """Make the folder of a new job; forget those of the oldest jobs."""
        for folder in (*reversed(self._folder.parents), self._folder):
            folder.mkdir(mode=0o700, exist_ok=True)  # parents=True makes parents 0777
        if self._kept is None:
            return
        jobs = sorted(self._jobs(), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for old in jobs[self._kept :]:
            shutil.rmtree(old, ignore_errors=True)

    def _tidy(self) -> None:
        """Remove partial files of killed processes."""
        begin = time.time() - ABANDONED
        for partial in self._folder.glob(".*"):
            with contextlib.suppress(FileNotFoundError):  # removed by another process
                if partial.stat().st_mtime < begin:
                    partial.unlink()


def _simulated(context: Context) -> bool:
    return bool(context.node_config.get("simulated")) or in_simulated_node()


def node_name(context: Context) -> str:
    """Return the node's stable name: its partition in a simulation, else its id."""
    partition = context.node_config.get("partition-id")
    if _simulated(context) and partition is not None:
        return str(int(partition))
    return str(context.node_id)


def store_of(context: Context, job: str) -> Store:
    """Return this node's memory of a job.

    Raises
    ------
    ProtocolError
        If ``job``, which the server says, is not an id: it becomes a folder's name.
    """
    if not JOB_ID.fullmatch(job):
        raise ProtocolError("job-id", "expected 32 hexadecimal digits")
    if _simulated(context):
        return ContextStore(context, job)
    return FolderStore(_base(context), node_name(context), job)


def store_for_good(context: Context, what: str, name: str) -> Store:
    """Return this node's memory of something that no later job makes it forget.

    Parameters
    ----------
    context : Context
    what : str
        Letters; a folder of this name beside the node's jobs, and part of the key in
        simulations: memories of different things are never the same.
    name : str
        Any text; the same one finds the same memory.
    """
    job = hashlib.sha256(name.encode()).hexdigest()[:32]
    if _simulated(context):
        return ContextStore(context, f"{what}-{job}")
    return FolderStore(_base(context) / node_name(context), what, job, kept=None)


def _base(context: Context) -> Path:
    """Return the node's folder for state, else the user's (XDG Base Directory)."""
    if path := context.node_config.get("state-path"):
        return Path(str(path))
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "truststram"
