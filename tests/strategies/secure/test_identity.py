"""Identities and rosters: who signed, and files that give nothing away."""

from __future__ import annotations

import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.secure.identity import CONTEXT, Identity, Member, Roster
from truststram.errors import ConfigError, ProtocolError


@pytest.fixture
def nodes():
    return [Identity.generate(name) for name in ("a", "b")]


def test_a_signature_names_its_signer_and_nothing_else(nodes):
    a, b = nodes
    roster = Roster(x.member for x in nodes)
    signature = a.sign(b"text")
    assert roster.verify(a.member.public, signature, b"text") == a.member
    for public, made, data, code in (
        (a.member.public, signature, b"Text", "signature"),
        (b.member.public, signature, b"text", "signature"),
        (a.member.public, signature[:-1], b"text", "signature"),
        (Identity.generate("c").member.public, signature, b"text", "unknown-key"),
        (b"short", signature, b"text", "unknown-key"),
    ):
        with pytest.raises(ProtocolError, match=code):
            roster.verify(public, made, data)


def test_signatures_are_ed25519_with_a_purpose():
    # RFC 8032, section 7.1, TEST 1: the key; the message has our prefix.
    seed = bytes.fromhex(
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    )
    identity = Identity("a", "client", seed)
    assert identity.member.public.hex().startswith("d75a980182b10ab7d54bfed3c964073a")
    plain = Ed25519PrivateKey.from_private_bytes(seed)
    assert identity.sign(b"x") == plain.sign(CONTEXT + b"x")
    assert identity.sign(b"x") != plain.sign(b"x")


def test_an_identity_survives_its_file_and_is_private(nodes, tmp_path):
    path = tmp_path / "identity.key"
    nodes[0].save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Identity.load(path)
    assert (again.member, again.sign(b"x")) == (nodes[0].member, nodes[0].sign(b"x"))
    with pytest.raises(FileExistsError):
        nodes[1].save(path)
    assert Identity.load(path).member == nodes[0].member
    seed = path.read_text().split()[-1]
    assert seed not in repr(nodes[0]) + str(nodes[0]) + str(vars(nodes[0]))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_file_that_others_may_touch_is_refused(nodes, tmp_path, mode):
    path = tmp_path / "identity.key"
    nodes[0].save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        Identity.load(path)


@pytest.mark.parametrize(
    "text",
    ["", "x", "truststram-identity a client 00", "other a client " + "0" * 64],
)
def test_what_is_no_identity_is_refused_without_its_text(tmp_path, text):
    path = tmp_path / "identity.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as error:
        Identity.load(path)
    assert str(error.value) == f"{path} is not an identity file."
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(ConfigError):
        Identity.load(link)


def test_a_roster_survives_its_file(nodes, tmp_path):
    path = tmp_path / "roster.txt"
    lines = [x.member.line() for x in nodes]
    path.write_text("# nodes\n\n" + "\n".join(lines) + "\n")
    roster = Roster.load(path)
    assert [m.line() for m in roster] == lines
    assert roster.member("b") == nodes[1].member
    with pytest.raises(ProtocolError, match="unknown-node"):
        roster.member("c")


def test_one_key_has_one_vote(nodes):
    a, b = (x.member for x in nodes)
    with pytest.raises(ConfigError, match="twice"):
        Roster([a, Member("c", "client", a.public)])
    with pytest.raises(ConfigError, match="two nodes"):
        Roster([a, Member("a", "client", b.public)])


@pytest.mark.parametrize(
    "line", ["a client", "a boss " + "0" * 64, "a client zz", "a/b client " + "0" * 64]
)
def test_a_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "roster.txt"
    path.write_text("# x\n" + line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        Roster.load(path)
    with pytest.raises(ConfigError, match="No such file"):
        Roster.load(tmp_path / "none")
