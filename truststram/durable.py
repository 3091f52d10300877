"""Files that are whole after a crash: as they were before, or as they were to be.

And that no two processes change at once, if both ask (:func:`alone`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["alone", "replace", "sync"]

FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def replace(
    path: Path,
    parts: Iterable[bytes | memoryview],
    *,
    partial: Path,
    mode: int = 0o666,
) -> None:
    """Write a file beside its place, fsync it, rename it, and fsync the folder.

    Parameters
    ----------
    path : Path
        The file, whether there is one or not.
    parts : iterable of bytes
        Its content, in order.
    partial : Path
        Where it is written, in the same folder; gone afterwards, also if it fails.
    mode : int
        Of the new file, less the umask.

    Raises
    ------
    OSError
        If it cannot be written; what was there is intact. Or if only the last step, the
        fsync of the folder, fails: then the new file is in its place, and after a power
        cut it may be the old one again.
    """
    try:
        with os.fdopen(os.open(partial, FLAGS, mode), "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is inside with the same lock file, mode 0600.

    Raises
    ------
    OSError
        If the lock file cannot be opened, or is a link.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(lock, flags, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def sync(folder: Path) -> None:
    """Let what was added to or removed from a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
