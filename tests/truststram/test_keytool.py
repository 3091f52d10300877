"""``truststram keys``: from nothing to a federation, and nothing overwritten."""

from __future__ import annotations

import stat

import pytest
from typer.testing import CliRunner

from strategies.secure.identity import Identity, Roster
from strategies.secure.keys import JobKey
from truststram.cli import app


def truststram(*arguments: object):
    result = CliRunner().invoke(app, ["keys", *map(str, arguments)])
    if result.exit_code == 0:
        assert result.stderr == ""
    return result


def test_from_identities_to_a_roster_and_a_jobs_key(tmp_path):
    for name, role in (("a", "client"), ("b", "decryptor")):
        done = truststram("identity", name, "--role", role, "--out", tmp_path / name)
        assert done.exit_code == 0
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700
    publics = [tmp_path / n / f"{n}.pub" for n in "ab"]
    out = tmp_path / "roster.txt"
    done = truststram("roster", *publics, "--decryptor", "b", "--out", out)
    assert "2 nodes" in done.stdout
    roster = Roster.load(out)
    for member in roster:  # what is to be asked for by telephone
        assert member.line() in done.stdout
    assert [(m.name, m.role) for m in roster] == [("a", "client"), ("b", "decryptor")]
    loaded = Identity.load(tmp_path / "b" / "identity.key")
    assert roster.member("b") == loaded.member

    bfv = ("-c", "secure.scheme=bfv", "-c", "secure.key-holder=decryptor")
    done = truststram("init", *bfv, "--out", tmp_path / "job")
    secret, public = (
        JobKey.load(tmp_path / "job" / name) for name in ("secret.key", "public.key")
    )
    assert secret.fingerprint == public.fingerprint
    assert f"Fingerprint: {secret.fingerprint}" in done.stdout
    assert "decryptor only" in done.stdout


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("{a}\n{b}\n", (), "has 2 keys"),
        ("# nobody\n", (), "has 0 keys"),
        ("{c}\n", (), "c is a decryptor by its own file"),
        ("{c}\n", ("--decryptor", "a"), "c is a decryptor by its own file"),
        ("{a}\n", ("--decryptor", "a"), "no file has a decryptor"),
        ("{a}\n", ("--decryptor", "z"), "no file has a decryptor"),
    ],
)
def test_a_node_sends_its_own_key_and_not_what_it_may_do(
    tmp_path, text, options, reason
):
    made = {
        name: Identity.generate(name, role).member.line()
        for name, role in (("a", "client"), ("b", "client"), ("c", "decryptor"))
    }
    sent, out = tmp_path / "sent.pub", tmp_path / "roster.txt"
    sent.write_text(text.format(**made))
    done = truststram("roster", sent, *options, "--out", out)
    assert done.exit_code == 2
    assert reason in " ".join(done.stderr.split())
    assert not out.exists()


def test_show_tells_names_and_fingerprints_and_nothing_secret(tmp_path):
    truststram("identity", "a", "--out", tmp_path)
    truststram("init", "-c", "secure.scheme=ckks", "--out", tmp_path)
    text = truststram("show", tmp_path).stdout
    identity = Identity.load(tmp_path / "identity.key")
    assert identity.member.line() in text
    assert JobKey.load(tmp_path / "secret.key").fingerprint in text
    seed = (tmp_path / "identity.key").read_text().split()[-1]
    assert seed not in text
    assert len(text) < 1_000
    one = truststram("show", tmp_path / "secret.key").stdout
    assert "ckks, up to 100 nodes" in one


def test_keys_are_never_overwritten(tmp_path):
    arguments = {
        "identity": ("identity", "a", "--out", tmp_path),
        "init": ("init", "-c", "secure.scheme=bfv", "--out", tmp_path),
        "roster": ("roster", tmp_path / "a.pub", "--out", tmp_path / "roster.txt"),
    }
    for made in arguments.values():
        assert truststram(*made).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for made in arguments.values():
        again = truststram(*made)
        assert again.exit_code == 2
        assert "never overwritten" in again.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("init",), "has no key of the job"),
        (("init", "-c", "secure.scheme=xyz"), "secure.scheme"),
        (("identity", "no spaces"), "1 to 64 letters"),
        (("roster", "/no/such/file"), "No such file"),
        (("show", "/no/such/file"), "No such file|has no"),
    ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    done = truststram(*arguments)
    assert done.exit_code == 2
    import re

    assert re.search(reason, done.stderr.replace("\n", " "))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_the_help_teaches_the_whole_way():
    text = CliRunner().invoke(app, ["keys", "--help"]).stdout
    for word in ("identity", "roster", "init", "show", "TRUSTSTRAM_ROSTER"):
        assert word in text
    assert "secure-keys" in text
