"""The encryption key of a job, and what a node or the server of a job holds.

Files in a node's folder (``secure-keys`` in the node's config)
---------------------------------------------------------------
``identity.key``  the node's own (:mod:`.identity`); never leaves it
``roster.txt``    everybody's public keys; the operator's
``secret.key``    the job's secret key: on every node (``secure.key-holder = clients``),
                  or on the decryptor only
``public.key``    the job's public key (``decryptor``): on the nodes that encrypt

``truststram keys`` makes them. None of them is ever part of the app, of the run config
or of a message; the server has ``roster.txt`` and no key. Each job has a key of its
own, and every frame names it by a fingerprint.

A key file is one line of JSON (format, kind, fingerprint, parameters, SHA-256) and
SEAL's serialisation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flwr.app import Context

from truststram._flower import in_simulated_node
from truststram.errors import ConfigError
from truststram.job import Job

from . import automatic
from .he import Cipher
from .identity import DECRYPTOR, Identity, Roster
from .parameters import Parameters, choose
from .private_files import read_secret, write_secret
from .wire import digest

__all__ = [
    "HE",
    "JobKey",
    "Keyring",
    "keyring_of",
    "parameters_of",
    "require_seal",
    "server_roster",
]

HE = ("ckks", "bfv")
FORMAT = "truststram-he-key 1"
SECRET, PUBLIC, IDENTITY, ROSTER = (
    "secret.key",
    "public.key",
    "identity.key",
    "roster.txt",
)
# Where the operator of a server says which roster it uses.
ROSTER_VARIABLE = "TRUSTSTRAM_ROSTER"


def parameters_of(job: Job) -> Parameters | None:
    """Return the encryption parameters of a job; None for schemes without keys."""
    keys = job.secure
    if keys.scheme not in HE:
        return None
    public = keys.key_holder == DECRYPTOR
    return choose(keys.scheme, keys.max_cohort, public=public)


def require_seal(job: Job) -> None:
    """Refuse a job whose scheme this machine cannot do.

    Raises
    ------
    ConfigError
        If TenSEAL is missing, or for more nodes than a sum can have.
    """
    if parameters_of(job) is not None and find_spec("tenseal") is None:
        raise ConfigError(
            "secure.scheme = ckks and bfv need TenSEAL, which is not installed: "
            "pip install 'truststram-fl[secure]'."
        )


@dataclass(frozen=True)
class JobKey:
    """A job's key: both halves, one of them, or only its fingerprint.

    The key material is not part of ``repr``.
    """

    parameters: Parameters
    fingerprint: str
    secret: bytes | None = field(default=None, repr=False)
    public: bytes | None = field(default=None, repr=False)

    @classmethod
    def generate(cls, parameters: Parameters) -> JobKey:
        """Return a new key, from the operating system's generator."""
        secret, public = Cipher.generate(parameters)
        told = digest(b"job key", public or secret)[:32]
        return cls(parameters, told, secret, public or None)

    @cached_property
    def cipher(self) -> Cipher:
        """Encryption and decryption, as far as this key allows."""
        return Cipher(self.parameters, self.secret, self.public)

    def save(self, folder: Path) -> list[Path]:
        """Write what there is to new files with mode 0600, and return their paths."""
        halves = {SECRET: self.secret, PUBLIC: self.public}
        written = []
        for name, data in halves.items():
            if data is None:
                continue
            about = {
                "format": FORMAT,
                "kind": name,
                "fingerprint": self.fingerprint,
                "parameters": asdict(self.parameters),
                # SEAL's reader may end the process at damaged bytes.
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            write_secret(folder / name, json.dumps(about).encode() + b"\n" + data)
            written.append(folder / name)
        return written

    @classmethod
    def load(cls, path: Path) -> JobKey:
        """Return the key in a file.

        Raises
        ------
        ConfigError
            If the file is missing, readable by others or not a key file.
        """
        line, _, data = read_secret(path).partition(b"\n")
        try:
            about = json.loads(line)
            if about["format"] != FORMAT or about["kind"] not in (SECRET, PUBLIC):
                raise ValueError
            values = about["parameters"]
            values["primes"] = tuple(int(x) for x in values["primes"])
            parameters, told = Parameters(**values), str(about["fingerprint"])
            is_secret = about["kind"] == SECRET
            if about["sha256"] != hashlib.sha256(data).hexdigest():
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path} is not a key file of a job, or damaged."
            ) from None
        return cls(
            parameters,
            told,
            secret=data if is_secret else None,
            public=None if is_secret else data,
        )


@dataclass(frozen=True)
class Keyring:
    """What a node holds: who it is, whom it knows, the job's key, where it remembers.

    ``folder`` is None in simulations, which remember in Flower's node state.
    """

    identity: Identity
    roster: Roster
    key: JobKey | None
    folder: Path | None = None


def keyring_of(context: Context, job: Job) -> Keyring:
    """Return a node's keyring for a job.

    In deployment from the folder that the node's operator names (node config
    ``secure-keys``), in simulations from what the server process has made
    (:mod:`.automatic`).

    Raises
    ------
    ConfigError
        If there is none, or if the key is not for this job's settings.
    """
    folder = context.node_config.get("secure-keys")
    if folder:
        return _from_folder(Path(str(folder)), parameters_of(job))
    simulated = bool(context.node_config.get("simulated")) or in_simulated_node()
    if not simulated:
        raise ConfigError(
            "The job has secure sums and this node has no keys. Make them with "
            "truststram keys, and start the SuperNode with --node-config "
            "'secure-keys=\"/path/of/the/folder\"'."
        )
    made = automatic.find(context.run_id)
    name = str(context.node_config.get("partition-id", ""))
    return Keyring(made.identity(name), made.roster, made.key)


@lru_cache(maxsize=4)
def _from_folder(folder: Path, parameters: Parameters | None) -> Keyring:
    identity = Identity.load(folder / IDENTITY)
    roster = Roster.load(folder / ROSTER)
    if roster.member(identity.member.name) != identity.member:
        raise ConfigError(f"{folder / ROSTER} has another key or role for this node.")
    key = None
    if parameters is not None:
        holds = not parameters.public or identity.member.role == DECRYPTOR
        path = folder / (SECRET if holds else PUBLIC)
        key = JobKey.load(path)
        if key.parameters != parameters:
            raise ConfigError(
                f"{path} was made for other settings. Make keys for this job: "
                "truststram keys init with its secure.scheme, secure.key-holder and "
                "secure.max-cohort."
            )
    return Keyring(identity, roster, key, folder)


def server_roster(environment: Mapping[str, str] | None = None) -> Roster | None:
    """Return the roster of a server's operator; None if there is none.

    Its path is in the environment variable ``TRUSTSTRAM_ROSTER`` of the server's
    process, never in the run config, which whoever starts a run may choose.
    """
    values: Mapping[str, Any] = os.environ if environment is None else environment
    path = values.get(ROSTER_VARIABLE)
    return Roster.load(Path(path)) if path else None
