"""Keys of simulations: made for the run, gone with it.

In a simulation one machine is the server and all nodes, so that keys protect nobody
from anybody; they are there so that what runs is what a federation will run. They stay
in the memory of an in-process run. The processes of a Flower simulation share them
through a folder of mode 0700 in the folder for temporary files, which the server's
process removes when it ends. If it is killed, whoever started the run does:
``truststram run`` gives Flower a folder for temporary files of its own and removes all
of it. What a killed server of another kind leaves behind, the next simulation removes:
the server's process holds a lock on its folder, so a folder without one is nobody's. In
no case are the keys in the app, in the run config or in the run's folder.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from truststram.errors import ConfigError

from .identity import CLIENT, DECRYPTOR, Identity, Roster
from .private_files import read_secret, write_secret

if TYPE_CHECKING:
    from .keys import JobKey

__all__ = ["Automatic", "create", "find"]

# Runs of this process, by Flower's id. The last few: tests make many.
_RUNS: dict[int, Automatic] = {}
MOST_RUNS = 8
# Of a folder: a file that the server's process keeps locked while it lives.
OWNER = "owner"
_OWNERS: dict[Path, int] = {}


@dataclass(frozen=True)
class Automatic:
    """All keys of a simulated federation.

    Parameters
    ----------
    nodes : int
        They are called 0, 1, 2 ... as their partitions.
    key : JobKey or None
        Under a public key the last node is the decryptor.
    secret : bytes
        All identities follow from it.
    """

    nodes: int
    key: JobKey | None
    secret: bytes = field(repr=False)

    def identity(self, name: str) -> Identity:
        """Return the identity of a node."""
        public = self.key is not None and self.key.parameters.public
        decrypts = public and name == str(self.nodes - 1)
        role = DECRYPTOR if decrypts else CLIENT
        return Identity.derive(self.secret, name, role)

    @cached_property
    def roster(self) -> Roster:
        """Everybody's public keys."""
        return Roster(self.identity(str(i)).member for i in range(self.nodes))


def create(run: int, nodes: int, key: JobKey | None, *, shared: bool) -> Automatic:
    """Make the keys of a run.

    Parameters
    ----------
    run : int
        Flower's id.
    nodes : int
    key : JobKey or None
    shared : bool
        For nodes in other processes.
    """
    made = Automatic(nodes, key, os.urandom(32))
    while len(_RUNS) >= MOST_RUNS:
        del _RUNS[next(iter(_RUNS))]
    _RUNS[run] = made
    if shared:
        _write(_folder(run), made)
    return made


def find(run: int) -> Automatic:
    """Return the keys of a run.

    Raises
    ------
    ConfigError
        If nobody has made them on this machine.
    """
    return _RUNS.get(run) or _read(run)


def _folder(run: int | str) -> Path:
    return Path(tempfile.gettempdir()) / f"truststram-{os.geteuid()}-secure-{run}"


def _write(folder: Path, made: Automatic) -> None:
    _remove_abandoned()
    if folder.exists() and _is_ours(folder):  # of a run that was continued
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _own(folder)
    if made.key is not None:
        made.key.save(folder)
    # Last: whoever finds it finds everything.
    text = json.dumps([made.nodes, made.key is not None, made.secret.hex()])
    write_secret(folder / "federation.key", text.encode())


def _own(folder: Path) -> None:
    """Lock a file in the folder until this process ends, however it ends."""
    if folder in _OWNERS:
        os.close(_OWNERS.pop(folder))
    new = folder / f"{OWNER}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    new.rename(folder / OWNER)  # nobody finds it before it is locked
    _OWNERS[folder] = descriptor


def _remove_abandoned() -> None:
    """Remove this user's folders whose process has ended without doing so."""
    pattern = _folder("*")
    for folder in pattern.parent.glob(pattern.name):
        try:
            with (folder / OWNER).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                abandoned = _is_ours(folder)
        except OSError:  # its process lives, or has not locked it yet, or removes it
            continue
        if abandoned:
            shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=4)
def _read(run: int) -> Automatic:
    from .keys import PUBLIC, SECRET, JobKey

    folder = _folder(run)
    if not folder.is_dir() or not _is_ours(folder):
        raise ConfigError(
            "The server has made no keys for this simulation on this machine."
        )
    nodes, has_key, secret = json.loads(read_secret(folder / "federation.key"))
    key = None
    if has_key:
        key = JobKey.load(folder / SECRET)
        if key.parameters.public:
            public = JobKey.load(folder / PUBLIC).public
            key = JobKey(key.parameters, key.fingerprint, key.secret, public)
    return Automatic(nodes, key, bytes.fromhex(secret))


def _is_ours(folder: Path) -> bool:
    about = folder.lstat()
    mine = about.st_uid == os.geteuid() and stat.S_ISDIR(about.st_mode)
    return mine and not about.st_mode & 0o077
