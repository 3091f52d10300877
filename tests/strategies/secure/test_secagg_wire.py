"""Requests of stages are read or refused; a node's state is taken once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from flwr.app import ConfigRecord, RecordDict

from strategies.secure.quantise import Quantiser
from strategies.secure.secagg_state import RoundState
from strategies.secure.secagg_wire import Request, Settings
from strategies.secure.wire import SECURE
from tests.strategies.secure.masked import job_of
from truststram._flower import make_context
from truststram.errors import ConfigError, ProtocolError

GOOD = {
    "stage": "mask",
    "round": 3,
    "body": b"x",
    "model": "ab" * 32,
    "content": "cd" * 32,
}


def read(**changes):
    record = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    return Request.of(RecordDict({SECURE: ConfigRecord(record)}))


@pytest.mark.parametrize("body", [b"", b"some"])
def test_a_request_is_read_as_it_was_written(body):
    request = Request("unmask", 7, "cd" * 32, body, "ef" * 32)
    assert Request.of(RecordDict({SECURE: request.record()})) == request
    assert request.at("mask") == Request("mask", 7, "cd" * 32, content="ef" * 32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stage", "update"),
        ("stage", None),
        ("stage", 3),
        ("stage", ["mask"]),
        ("round", -1),
        ("round", True),
        ("round", 1.0),
        ("round", None),
        ("model", "AB" * 32),
        ("model", "ab" * 31),
        ("model", b"ab" * 32),
        ("model", None),
        ("content", "ab" * 31),
        ("content", None),
        ("body", "x"),
        ("body", [b"x"]),
    ],
    ids=range(16),
)
def test_malformed_requests_are_refused(name, value):
    assert read() == Request(**GOOD)
    with pytest.raises(ProtocolError, match=r"^request: "):
        read(**{name: value})


def test_a_message_without_a_request_is_refused():
    with pytest.raises(ProtocolError, match="no secure sum"):
        Request.of(RecordDict())


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"values": -1, "metrics": []},
        {"values": 2**31, "metrics": []},
        {"values": 3.0, "metrics": []},
        {"values": 3, "metrics": [1]},
        {"values": 3, "metrics": ["b", "a"]},
        {"values": 3, "metrics": ["a"] * 65},
        {"values": 3, "metrics": None},
        None,
    ],
    ids=range(9),
)
def test_descriptions_that_make_no_sense_are_refused(about):
    settings = Settings(job_of())
    assert settings.slots({"values": 3, "metrics": ["a", "b"]}).values == 3
    with pytest.raises(ProtocolError, match=r"^header: "):
        settings.slots(about)


def test_whatever_clients_must_have_in_common_is_in_the_hash():
    jobs = [
        {},
        {"secure.clip": 2.0},
        {"secure.max-cohort": 50},
        {"secure.min-cohort": 4},
        {"secure.threat": "malicious"},
        {"secure.colluders": 1},
        {"secure.group-size": 3},
        {"train.rounds": 6},
        {"train.lr": 0.5},
    ]
    hashes = [Settings(job_of(**changes)).hash for changes in jobs]
    hashes.append(Settings(job_of(), lambda n: None).hash)
    assert len(set(hashes)) == len(jobs) + 1
    assert Settings(job_of()).hash == hashes[0]
    assert isinstance(Settings(job_of()).quantiser, Quantiser)


TAG, OTHER = b"t" * 32, b"o" * 32


@pytest.fixture(params=["file", "record"])
def make(request, tmp_path):
    """Return a function that finds a node's state again, as the next process does."""
    context = make_context(1, {}, {})
    folder = tmp_path if request.param == "file" else None
    return lambda: RoundState(context, folder)


def test_a_state_is_taken_once(make):
    make().put(TAG, b"first")
    make().put(TAG, b"second")
    assert make().take(TAG) == b"second"
    with pytest.raises(ProtocolError, match=r"^stage: "):
        make().take(TAG)


def test_without_a_state_there_is_no_sum(make):
    with pytest.raises(ProtocolError, match="in no sum"):
        make().take(TAG)


def test_a_message_of_another_sum_leaves_the_state_alone(make):
    make().put(TAG, b"kept")
    with pytest.raises(ProtocolError, match=r"^session: "):
        make().take(OTHER)
    assert make().take(TAG) == b"kept"


def run_of(number, folder):
    context = make_context(1, {}, {})
    context.run_id = number
    return RoundState(context, folder)


def test_runs_of_a_node_do_not_touch_each_other(tmp_path):
    run_of(1, tmp_path).put(TAG, b"one")
    run_of(2, tmp_path).put(OTHER, b"two")
    assert run_of(1, tmp_path).take(TAG) == b"one"
    assert run_of(2, tmp_path).take(OTHER) == b"two"


def test_what_runs_that_died_have_left_is_removed(tmp_path):
    run_of(1, tmp_path).put(TAG, b"long ago")
    [old] = tmp_path.glob("secagg.state*")
    run_of(2, tmp_path).put(TAG, b"two")
    assert old.exists()  # it may still go on
    os.utime(old, (0, 0))
    run_of(2, tmp_path).put(TAG, b"two")
    assert not old.exists()
    assert run_of(2, tmp_path).take(TAG) == b"two"


def test_one_of_many_threads_takes_a_state(tmp_path):
    run_of(1, tmp_path).put(TAG, b"once")

    def take(_):
        try:
            return run_of(1, tmp_path).take(TAG)
        except ProtocolError:
            return None

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(take, range(8)))
    assert sorted(found, key=bool) == [*[None] * 7, b"once"]


def test_the_file_is_the_owners_alone_and_gone_when_it_was_read(tmp_path):
    state = RoundState(make_context(1, {}, {}), tmp_path)
    old = os.umask(0)
    try:
        state.put(TAG, b"secret")
    finally:
        os.umask(old)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    [file] = tmp_path.glob("secagg.state*")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod"):
        state.take(TAG)
    assert list(tmp_path.glob("secagg.state*")) == []


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    target = tmp_path / "elsewhere"
    target.write_bytes(b"kept")
    folder = tmp_path / "node"
    folder.mkdir()
    (folder / "secagg.state-1.new").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        run_of(1, folder).put(TAG, b"secret")
    assert target.read_bytes() == b"kept"
