"""Key files, rosters and keys of simulations: found, checked, never shown."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from strategies.secure import automatic
from strategies.secure.identity import DECRYPTOR, Identity
from strategies.secure.keys import (
    JobKey,
    keyring_of,
    parameters_of,
    server_roster,
)
from strategies.secure.parameters import choose
from tests.strategies.secure.support import job_of
from truststram._flower import make_context
from truststram._processes import _environment
from truststram.errors import ConfigError

JOB = job_of("bfv", max_cohort=10)
PUBLIC_JOB = job_of("bfv", key_holder="decryptor", max_cohort=10)


@pytest.fixture(scope="module")
def key():
    return JobKey.generate(parameters_of(JOB))


@pytest.fixture
def folder(tmp_path, key):
    key.save(tmp_path)
    node = Identity.generate("a")
    node.save(tmp_path / "identity.key")
    other = Identity.generate("b").member
    lines = [node.member.line(), other.line()]
    (tmp_path / "roster.txt").write_text("\n".join(lines))
    return tmp_path


def context_of(folder):
    return make_context(5, {"secure-keys": str(folder)}, {})


def test_a_key_survives_its_file(key, tmp_path):
    [path] = key.save(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = JobKey.load(path)
    assert again == key
    q = np.arange(9, dtype=np.uint32)
    body = again.cipher.add([key.cipher.encrypt(q)], 9)
    np.testing.assert_array_equal(key.cipher.decrypt(body, 9, 1), q)
    with pytest.raises(FileExistsError):
        key.save(tmp_path)


def test_halves_of_a_public_key_are_two_files_of_one_fingerprint(tmp_path):
    made = JobKey.generate(parameters_of(PUBLIC_JOB))
    secret, public = (JobKey.load(path) for path in made.save(tmp_path))
    assert secret.fingerprint == public.fingerprint == made.fingerprint
    assert (secret.public, public.secret) == (None, None)
    q = np.arange(9, dtype=np.uint32)
    body = public.cipher.add([public.cipher.encrypt(q)], 9)
    np.testing.assert_array_equal(secret.cipher.decrypt(body, 9, 1), q)
    with pytest.raises(ConfigError, match="no secret key"):
        public.cipher.decrypt(body, 9, 1)


def test_two_keys_have_two_fingerprints_that_do_not_show_them(key):
    other = JobKey.generate(key.parameters)
    assert other.fingerprint != key.fingerprint
    assert key.secret.hex()[200:232] not in repr(key)
    assert "secret" not in repr(key)


@pytest.mark.parametrize("damage", ["flip", "cut", "text", "mode"])
def test_a_damaged_key_file_is_refused_before_seal_reads_it(key, tmp_path, damage):
    [path] = key.save(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-100] ^= 4
    if damage == "text":
        data = bytearray(b'{"format": "other"}\n')
    path.write_bytes(data[:-9] if damage == "cut" else data)
    if damage == "mode":
        path.chmod(0o644)
    with pytest.raises(ConfigError):
        JobKey.load(path)


def test_a_node_has_the_keys_of_its_folder(folder, key):
    ring = keyring_of(context_of(folder), JOB)
    assert (ring.identity.member.name, len(ring.roster)) == ("a", 2)
    assert (ring.key, ring.folder) == (key, folder)


def test_keys_of_another_job_are_refused(folder):
    with pytest.raises(ConfigError, match="other settings"):
        keyring_of(context_of(folder), job_of("bfv", max_cohort=20))
    with pytest.raises(ConfigError, match=r"public\.key"):
        keyring_of(context_of(folder), PUBLIC_JOB)


def test_a_roster_with_another_key_of_this_node_is_refused(folder):
    path = folder / "roster.txt"
    path.write_text(Identity.generate("a").member.line())
    with pytest.raises(ConfigError, match="another key"):
        keyring_of(context_of(folder), JOB)


def test_without_keys_a_deployed_node_says_what_to_do():
    with pytest.raises(ConfigError, match="truststram keys"):
        keyring_of(make_context(5, {}, {}), JOB)


def test_the_servers_roster_is_its_operators(folder):
    assert server_roster({}) is None
    found = server_roster({"TRUSTSTRAM_ROSTER": str(folder / "roster.txt")})
    assert [m.name for m in found] == ["a", "b"]
    with pytest.raises(ConfigError, match="No such file"):
        server_roster({"TRUSTSTRAM_ROSTER": "/no/such/file"})


@pytest.mark.parametrize("job", [JOB, PUBLIC_JOB], ids=["clients", "decryptor"])
def test_simulated_nodes_share_what_the_server_made(job, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made_key = JobKey.generate(parameters_of(job))
    run = int.from_bytes(os.urandom(6), "big")
    made = automatic.create(run, 4, made_key, shared=True)
    [folder] = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {0o600}
    monkeypatch.setattr(automatic, "_RUNS", {})  # as in another process
    found = automatic.find(run)
    assert (found, found.secret) == (made, made.secret)
    names = {m.name: m.role for m in found.roster}
    assert list(names) == ["0", "1", "2", "3"]
    assert (names["3"] == DECRYPTOR) == made_key.parameters.public
    again = automatic.create(run, 4, made_key, shared=True)  # a run that is continued
    assert again.secret != made.secret


SERVER = """
import sys, time
from strategies.secure import automatic
automatic.create(int(sys.argv[1]), 3, None, shared=True)
print("made", flush=True)
time.sleep(60)
"""


def test_keys_of_a_killed_simulation_are_removed_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = Path(__file__).resolve().parents[3]
    variables = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", SERVER, "1"]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout.readline() == b"made\n"
            automatic.create(2, 3, None, shared=True)
            names = {path.name.split("-")[-1] for path in tmp_path.iterdir()}
            assert names == {"1", "2"}  # both servers live
        finally:
            server.kill()
    assert len(list(tmp_path.iterdir())) == 2
    automatic.create(3, 3, None, shared=True)
    names = {path.name.split("-")[-1] for path in tmp_path.iterdir()}
    assert names == {"2", "3"}


def test_the_processes_of_a_run_leave_nothing_outside_its_folder(tmp_path):
    show = "import tempfile; print(tempfile.gettempdir())"
    done = subprocess.run(
        [sys.executable, "-c", show],
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == tmp_path


def test_keys_of_simulations_are_not_found_where_others_could_put_them(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = int.from_bytes(os.urandom(6), "big")
    with pytest.raises(ConfigError, match="made no keys"):
        automatic.find(run)
    automatic.create(run, 2, None, shared=True)
    monkeypatch.setattr(automatic, "_RUNS", {})
    [folder] = tmp_path.iterdir()
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="made no keys"):
        automatic.find(run)


def test_every_scheme_has_parameters_or_none():
    assert parameters_of(job_of("ckks")) == choose("ckks", 100)
    assert (
        parameters_of(JOB.replace({"secure.scheme": "none", "secure.max-cohort": 100}))
        is None
    )
