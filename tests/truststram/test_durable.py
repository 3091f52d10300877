"""Files on a node's disk: what is there after an error, and taking turns."""

from __future__ import annotations

import fcntl
import stat
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet

import pytest

from truststram import durable
from truststram.durable import alone, replace


def failing(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path, monkeypatch, before):
    path, partial = tmp_path / "file", tmp_path / "partial"
    if before:
        path.write_bytes(before)
    monkeypatch.setattr(durable.os, "fsync", failing)
    with pytest.raises(OSError, match="No space"):
        replace(path, [b"new"], partial=partial, mode=0o600)
    assert (path.read_bytes() if path.exists() else None) == before
    assert not partial.exists()


def test_a_folder_that_cannot_be_synced_has_the_new_file_already(tmp_path, monkeypatch):
    path, partial = tmp_path / "file", tmp_path / "partial"
    path.write_bytes(b"old")
    monkeypatch.setattr(durable, "sync", failing)
    with pytest.raises(OSError, match="No space"):
        replace(path, [b"n", b"ew"], partial=partial, mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not partial.exists()


def test_processes_take_turns(tmp_path):
    lock = tmp_path / "lock"

    def enter():
        with alone(lock):
            return True

    with alone(lock):
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
        with lock.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pool = ThreadPoolExecutor(1)
        waiting = pool.submit(enter)
        with pytest.raises(NotYet):
            waiting.result(timeout=0.1)
    assert waiting.result(timeout=10)
    pool.shutdown()


def test_a_lock_is_left_after_an_error_and_is_no_link(tmp_path):
    with pytest.raises(ValueError, match="inside"), alone(tmp_path / "lock"):
        raise ValueError("inside")
    with alone(tmp_path / "lock"):
        pass  # entering is the claim
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"), alone(tmp_path / "link"):
        pass  # entering fails
    assert not (tmp_path / "elsewhere").exists()
