"""Files of a node that no other user reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from truststram import durable
from truststram.errors import ConfigError

__all__ = ["read_secret", "write", "write_secret"]

MAX_SECRET = 2**20


def write(path: Path, data: bytes) -> None:
    """Replace a file as a whole, on the disk when this returns; mode 0600.

    By one process at a time (:func:`truststram.durable.alone`).
    """
    partial = path.with_name(f"{path.name}.new")
    durable.replace(path, [data], partial=partial, mode=0o600)


def read_secret(path: Path) -> bytes:
    """Return a file that only its owner may read, as ssh does with its keys.

    Raises
    ------
    ConfigError
        If it is missing, not a file of this user, readable by others or over 1 MiB.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"Key file {path}: {error.strerror}.") from None
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
            raise ConfigError(f"Key file {path} is not a file of this user.")
        if about.st_mode & 0o077:
            raise ConfigError(f"Others may read key file {path}: chmod 600 {path}")
        data = file.read(MAX_SECRET + 1)
    if len(data) > MAX_SECRET:
        raise ConfigError(f"Key file {path} is larger than {MAX_SECRET} bytes.")
    return data


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file with mode 0600; FileExistsError if there is one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
