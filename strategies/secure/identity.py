"""Who signed what: Ed25519 identities of nodes and the roster of those who are known.

Signatures: RFC 8032. Flower authenticates nodes to the SuperLink with keys that a
ClientApp never sees, so what goes from node to node through an untrusted server is
signed with keys of its own (``truststram keys identity``).

File formats
------------
An identity is a text file of one line, ``truststram-identity name role seed``, seed
being the private key in hexadecimal. It is written with mode 0600 and refused when
others could read it.

A roster is a text file with one line ``name role public-key`` for each node
(``truststram keys roster``); empty lines and lines that begin with ``#`` are skipped.
It holds nothing secret, but whoever can change it decides who takes part: the operator
copies it to the server and to every node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from truststram.errors import ConfigError, ProtocolError

from .private_files import read_secret, write_secret

__all__ = [
    "CLIENT",
    "DECRYPTOR",
    "Identity",
    "Member",
    "Roster",
]

CLIENT, DECRYPTOR = "client", "decryptor"
ROLES = (CLIENT, DECRYPTOR)
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAGIC = "truststram-identity"
MAX_MEMBERS = 100_000
MAX_ROSTER = 16 * 2**20
# Separates these signatures from any other use of the same key.
CONTEXT = b"truststram secure sum 1\0"


@dataclass(frozen=True)
class Member:
    """One line of a roster: a node's name, what it does, its public key (32 bytes)."""

    name: str
    role: str
    public: bytes

    def __post_init__(self) -> None:
        _check(self.name, self.role)
        if len(self.public) != 32:
            raise ConfigError(f"The public key of {self.name} is not 32 bytes long.")

    def line(self) -> str:
        """Return the roster's line."""
        return f"{self.name} {self.role} {self.public.hex()}"


class Identity:
    """A node's private key; ``repr`` and ``str`` do not show it.

    Parameters
    ----------
    name : str
        1 to 64 letters, digits, dots, dashes and underscores.
    role : str
        ``client``, or ``decryptor`` for the node that holds the key of a job and never
        trains.
    seed : bytes
        The private key, 32 bytes.
    """

    def __init__(self, name: str, role: str, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key().public_bytes_raw()
        self.member = Member(name, role, public)

    @classmethod
    def generate(cls, name: str, role: str = CLIENT) -> Identity:
        """Return a new identity, from the operating system's generator."""
        return cls(name, role, os.urandom(32))

    @classmethod
    def derive(cls, secret: bytes, name: str, role: str = CLIENT) -> Identity:
        """Return the identity of a simulated node: all follow from one secret.

        HKDF (RFC 5869) with the name; only for simulations, where one machine plays all
        nodes anyway.
        """
        info = b"simulated node\0" + name.encode()
        kdf = HKDF(hashes.SHA256(), length=32, salt=None, info=info)
        return cls(name, role, kdf.derive(secret))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Return the identity in a file.

        Raises
        ------
        ConfigError
            If the file is missing, readable by others or not an identity.
        """
        try:
            magic, name, role, seed = read_secret(path).decode().split()
            if magic != MAGIC:
                raise ValueError
            return cls(name, role, bytes.fromhex(seed))
        except ValueError:  # without its text, which would quote the file
            raise ConfigError(f"{path} is not an identity file.") from None

    def save(self, path: Path) -> None:
        """Write a new file with mode 0600.

        Raises
        ------
        FileExistsError
            Nothing is ever overwritten.
        """
        seed = self._key.private_bytes_raw().hex()
        line = f"{MAGIC} {self.member.name} {self.member.role} {seed}\n"
        write_secret(path, line.encode())

    def sign(self, data: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._key.sign(CONTEXT + data)

    def __repr__(self) -> str:
        return f"Identity({self.member.name!r}, {self.member.role!r})"


class Roster:
    """The nodes whose signatures count.

    Parameters
    ----------
    members : iterable of Member
        Names and keys must each be different: one key has one vote.

    Raises
    ------
    ConfigError
        For a name or a key that comes twice, or too many members.
    """

    def __init__(self, members: Iterable[Member]) -> None:
        self._of_key: dict[bytes, Member] = {}
        self._of_name: dict[str, Member] = {}
        for member in members:
            if member.name in self._of_name:
                raise ConfigError(f"The roster has two nodes named {member.name}.")
            if member.public in self._of_key:
                raise ConfigError(f"The key of {member.name} is in the roster twice.")
            if len(self._of_name) == MAX_MEMBERS:
                raise ConfigError(f"The roster has more than {MAX_MEMBERS} nodes.")
            self._of_name[member.name] = self._of_key[member.public] = member

    @classmethod
    def load(cls, path: Path) -> Roster:
        """Return the roster in a file.

        Raises
        ------
        ConfigError
            If the file is missing, too large or malformed; the line is named.
        """
        try:
            with path.open("rb") as file:
                text = file.read(MAX_ROSTER + 1)
        except OSError as error:
            raise ConfigError(f"Roster {path}: {error.strerror}.") from None
        if len(text) > MAX_ROSTER:
            raise ConfigError(f"Roster {path} is larger than {MAX_ROSTER} bytes.")
        return cls(_members(path, text.decode(errors="replace")))

    def __len__(self) -> int:
        return len(self._of_name)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._of_name.values())

    def member(self, name: str) -> Member:
        """Return the member of that name.

        Raises
        ------
        ProtocolError
            ``unknown-node``.
        """
        if name not in self._of_name:
            raise ProtocolError("unknown-node", "the roster has no node of that name")
        return self._of_name[name]

    def verify(self, public: bytes, signature: bytes, data: bytes) -> Member:
        """Return who signed ``data``.

        Raises
        ------
        ProtocolError
            ``unknown-key`` for a key that is not in the roster, ``signature`` for one
            that did not make this signature.
        """
        member = self._of_key.get(public)
        if member is None:
            raise ProtocolError("unknown-key", "the roster does not have that key")
        try:
            key = Ed25519PublicKey.from_public_bytes(public)
            key.verify(signature, CONTEXT + data)
        except (InvalidSignature, ValueError):
            raise ProtocolError("signature", "the signature is not valid") from None
        return member


def _check(name: str, role: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            "A node's name has 1 to 64 letters, digits, dots, dashes or underscores."
        )
    if role not in ROLES:
        raise ConfigError(f"A node's role is one of {', '.join(ROLES)}.")


def _members(path: Path, text: str) -> Iterator[Member]:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            name, role, key = words
            yield Member(name, role, bytes.fromhex(key))
        except (ValueError, ConfigError):
            raise ConfigError(
                f"Roster {path}, line {number}: expected `name role public-key`."
            ) from None
