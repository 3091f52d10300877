"""What a node remembers is whole or absent, in a record and in a folder."""

from __future__ import annotations

import os
import stat
import time

import numpy as np
import pytest

from strategies import stores
from strategies.memory import FIXED, MAGIC
from strategies.stores import (
    ContextStore,
    FolderStore,
    node_name,
    store_for_good,
    store_of,
)
from truststram._flower import become_task, make_context
from truststram.errors import DataError, ProtocolError

JOB, OTHER = "0" * 31 + "a", "0" * 31 + "b"
PARTS = (np.arange(5, dtype=np.float32).tobytes(), b"", b"frame")


def context(**config):
    become_task(1)
    return make_context(7, config, {})


@pytest.fixture(params=["context", "folder"])
def make(request, tmp_path):
    """Return a store of a job, on the same node every time."""
    node = context(simulated=True)
    if request.param == "context":
        return lambda job=JOB: ContextStore(node, job)
    return lambda job=JOB: FolderStore(tmp_path, "7", job)


def raw(store, name, change):
    """Change the bytes of an entry where they are kept."""
    if isinstance(store, FolderStore):
        path = store._folder / name
        path.write_bytes(change(path.read_bytes()))
        return
    record = store._state[store._prefix + name]
    whole = change(record["head"] + record["body"][:-1])
    cut = min(len(record["head"]), len(whole))
    record["head"], record["body"] = whole[:cut] or b"\0", whole[cut:] + b"\0"


def test_an_entry_comes_back_as_it_was(make):
    make().save("a", {"round": 3, "x": [1.5, "y"]}, PARTS)
    store = make()
    assert store.about("a") == {"round": 3, "x": [1.5, "y"]}
    entry = store.load("a")
    assert entry.about["round"] == 3
    assert tuple(map(bytes, entry.parts)) == PARTS
    make().save("a", {}, ())
    assert make().load("a").parts == ()
    make().drop("a")
    make().drop("a")
    assert make().load("a") is None
    assert store.damaged == []


def test_nothing_is_seen_of_another_job(make):
    make(JOB).save("a", {}, PARTS)
    assert make(OTHER).load("a") is None
    assert make(OTHER).about("a") is None


def test_a_damaged_byte_is_found(make):
    make().save("a", {"round": 3}, PARTS)
    size = FIXED + 200 + sum(map(len, PARTS))
    found = 0
    for place in range(0, size, 3):
        make().save("a", {"round": 3}, PARTS)
        changed = []

        def flip(data, place=place, changed=changed):
            if place >= len(data):
                return data
            changed.append(True)
            return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

        raw(make(), "a", flip)
        store = make()
        if changed:
            assert store.load("a") is None, place
            assert store.damaged == ["a"]
            found += 1
    assert found > (FIXED + sum(map(len, PARTS))) / 3


@pytest.mark.parametrize("kept", [0, 1, FIXED - 1, FIXED, FIXED + 3, -1])
def test_a_cut_entry_is_absent(make, kept):
    make().save("a", {"round": 3}, PARTS)
    raw(make(), "a", lambda data: data[:kept])
    store = make()
    assert store.load("a") is None
    assert store.damaged == ["a"]


def test_bytes_after_the_end_are_damage(make):
    make().save("a", {}, PARTS)
    raw(make(), "a", lambda data: data + b"x")
    store = make()
    assert store.about("a") is None
    assert store.damaged == ["a"]


@pytest.mark.parametrize(
    "text",
    [
        b"[1]",
        b'{"about": 1}',
        b'{"about": {}, "parts": [["x", 1]]}',
        b"[" * 100_000,
        b"\xff",
        b'{"about": {}, "parts": [[1000000000000, "00"]]}',
    ],
)
def test_a_well_made_head_around_nonsense_is_damage(tmp_path, text):
    """Whoever can write the file can make its hashes: nothing else may be raised."""
    import hashlib

    store = FolderStore(tmp_path, "7", JOB)
    store.save("a", {}, PARTS)
    head = MAGIC + len(text).to_bytes(4, "little") + hashlib.sha256(text).digest()
    (store._folder / "a").write_bytes(head + text)
    assert store.load("a") is None
    assert store.damaged == ["a"]


def test_a_crash_while_writing_leaves_the_old_entry(tmp_path, monkeypatch):
    store = FolderStore(tmp_path, "7", JOB)
    store.save("a", {"round": 1}, PARTS)

    def crash(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.os, "fsync", crash)
    with pytest.raises(DataError, match=r"No space left.*state-path"):
        store.save("a", {"round": 2}, PARTS)
    monkeypatch.undo()
    assert store.about("a") == {"round": 1}
    assert [p.name for p in store._folder.iterdir()] == ["a"]


def test_only_the_user_can_read_it(tmp_path):
    base, old = tmp_path / "state" / "truststram", os.umask(0)
    try:
        FolderStore(base, "7", JOB).save("a", {}, PARTS)
    finally:
        os.umask(old)
    file = base / "7" / JOB / "a"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    made = file.parents[: file.parents.index(tmp_path)]
    assert len(made) == 4
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in made} == {0o700}


def test_partial_files_of_killed_processes_are_removed(tmp_path):
    store = FolderStore(tmp_path, "7", JOB)
    store.save("a", {}, PARTS)
    for name, age in ((".a.123", 3600), (".b.124", 3600), (".b.125", 1), ("b", 3600)):
        path = store._folder / name
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    store.save("a", {}, PARTS)
    # One that is new may be another process's, which is at it.
    assert sorted(p.name for p in store._folder.iterdir()) == [".b.125", "a", "b"]


def test_a_node_keeps_its_last_jobs_only(tmp_path):
    jobs = [f"{i:032x}" for i in range(stores.KEPT_JOBS + 3)]
    for i, job in enumerate(jobs):
        FolderStore(tmp_path, "7", job).save("a", {}, ())
        os.utime(tmp_path / "7" / job, (i, i))
    FolderStore(tmp_path, "8", jobs[0]).save("a", {}, ())
    kept = sorted(p.name for p in (tmp_path / "7").iterdir())
    assert kept == jobs[-stores.KEPT_JOBS :]


@pytest.mark.parametrize(
    "job", ["", "../../x", "A" * 32, "0" * 31, "0" * 33, "0" * 32 + "/x"]
)
def test_the_server_cannot_choose_a_path(job):
    with pytest.raises(ProtocolError, match="job-id"):
        store_of(context(), job)


def test_where_it_is_kept(tmp_path, monkeypatch):
    assert isinstance(store_of(context(simulated=True), JOB), ContextStore)
    given = store_of(context(**{"state-path": str(tmp_path / "s")}), JOB)
    assert given._folder == tmp_path / "s" / "7" / JOB
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "x"))
    assert store_of(context(), JOB)._folder == tmp_path / "x/truststram/7" / JOB
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_of(context(), JOB)._folder.is_relative_to(tmp_path / ".local/state")


@pytest.mark.parametrize("simulated", [False, True])
def test_what_is_kept_for_good_is_by_what_it_is_and_by_name(tmp_path, simulated):
    node = context(simulated=simulated, **{"state-path": str(tmp_path)})
    kinds = [(what, name) for what in ("a", "b") for name in ("x", "../y")]
    for what, name in kinds:
        assert store_for_good(node, what, name).about("e") is None
        store_for_good(node, what, name).save("e", {"is": [what, name]}, ())
    for what, name in kinds:
        assert store_for_good(node, what, name).about("e") == {"is": [what, name]}
    found = {p.relative_to(tmp_path).parts[:2] for p in tmp_path.rglob("e")}
    assert found == (set() if simulated else {("7", "a"), ("7", "b")})


def test_the_name_of_a_node():
    assert node_name(context(simulated=True, **{"partition-id": 3})) == "3"
    # A deployed node may have a partition too, but its name is its id.
    assert node_name(context(**{"partition-id": 3})) == "7"


def test_a_description_has_a_bound(tmp_path):
    with pytest.raises(DataError, match="description"):
        FolderStore(tmp_path, "7", JOB).save("a", {"x": "y" * 9 * 2**20}, ())
