"""The folder of a run: its name, its lock, and the files in it.

::

    runs/<id>/events.jsonl         the record of the run
              name                 what nodes know the run by
              report.json          projection of the events
              curves.png           picture of the report
              model.safetensors    the model after the last round
              best.safetensors     the model of the best evaluated round
              rounds/              the last two round records, for resume
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from pathlib import Path
from typing import IO

from truststram import durable
from truststram.errors import CheckpointError, ConfigError
from truststram.job import Job

__all__ = ["RunFolder"]

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NAME = re.compile(SAFE_ID.pattern + r"-[0-9a-f]{16}")


class RunFolder:
    """Creates or reopens a run's folder and holds its lock until closed.

    Attributes
    ----------
    id : str
        The folder's name.
    name : str
        What nodes know the run by: the id, which another run may have had in another
        folder, and 64 random bits. A resume keeps it: it is durable before anybody is
        asked.

    Raises
    ------
    ConfigError
        For an id that is not a plain name.
    CheckpointError
        If the folder belongs to a finished run, is in use, cannot be written, or has
        lost the name of the run that is to be resumed.
    """

    def __init__(self, job: Job) -> None:
        base = Path(job.run.dir) if job.run.dir else Path.cwd() / "runs"
        self.id = job.run.resume or job.run.id or _new_id(job.task.name)
        if not SAFE_ID.fullmatch(self.id):
            raise ConfigError(
                f"run.id = {self.id!r}: expected letters, digits, '.', '_' and '-'."
            )
        self.path = base / self.id
        if job.run.resume and not self.events.exists():
            raise CheckpointError(f"There is no run {self.id} in {base} to resume.")
        if not job.run.resume and self.events.exists():
            raise CheckpointError(
                f"{self.path} already holds a run. Continue it with run.resume, or "
                "choose another run.id."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            self.name = self._kept_name() if job.run.resume else self._new_name()
        except OSError as error:
            raise CheckpointError(
                f"The run folder {self.path} cannot be written: {error.strerror}."
            ) from error

    def _locked(self) -> IO[str]:
        lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise CheckpointError(
                f"{self.path} is in use by another run of the same id."
            ) from None
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _new_name(self) -> str:
        name = f"{self.id}-{secrets.token_hex(8)}"
        path = self.path / "name"
        durable.replace(path, [name.encode()], partial=path.with_suffix(".tmp"))
        return name

    def _kept_name(self) -> str:
        try:
            name = (self.path / "name").read_text("ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            name = ""
        if not NAME.fullmatch(name):
            self.close()
            raise CheckpointError(
                f"{self.path / 'name'} is missing or damaged: nodes would take the "
                "rest of the run for another run. Put it back, or start the run again "
                "under another run.id."
            )
        return name

    @property
    def events(self) -> Path:
        """The event log."""
        return self.path / "events.jsonl"

    @property
    def rounds(self) -> Path:
        """Folder of the round records."""
        return self.path / "rounds"

    @property
    def model(self) -> Path:
        """The final model."""
        return self.path / "model.safetensors"

    @property
    def best(self) -> Path:
        """The best model."""
        return self.path / "best.safetensors"

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()  # the file stays: removing it could free another's lock


def _new_id(task: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", task)[:40]
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(2)}"
