"""A node's memory: no two sums from which one node could be subtracted."""

from __future__ import annotations

import fcntl
import stat
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet

import pytest
from flwr.app import ConfigRecord

from strategies.secure import journal
from strategies.secure.graph import quorums_meet
from strategies.secure.journal import RECENT, STATE, Journal
from truststram._flower import make_context
from truststram.errors import CheckpointError, ProtocolError


@pytest.fixture(params=["state", "file"])
def reopen(request, tmp_path):
    """Return a function that opens the memory again, as after a restart."""
    context = make_context(1, {}, {})
    folder = tmp_path if request.param == "file" else None
    return lambda key="k": Journal(context, key, folder)


def test_a_node_knows_what_it_trained_for_lately(reopen):
    assert not reopen().trained("m")
    for part in ("m", "other", "m"):
        reopen().train(part)
    assert reopen().trained("m")
    assert not reopen("another key").trained("m")
    for i in range(RECENT - 1):
        reopen().train(f"m{i}")
    assert reopen().trained("m")
    assert not reopen().trained("other")
    reopen().train("last")
    assert not reopen().trained("m")


def test_sums_of_a_model_are_of_equal_or_of_disjoint_sets(reopen):
    reopen().open("m", ["a", "b", "c"])
    reopen().open("m", ["c", "b", "a"])
    reopen().open("m", ["d", "e", "f"])
    for nodes in (["a", "b"], ["a", "b", "c", "d"], ["f", "g", "h"]):
        with pytest.raises(ProtocolError, match="reopened"):
            reopen().open("m", nodes)
    reopen().open("m2", ["a", "b"])


def test_a_node_masks_for_cohorts_whose_quorums_must_meet(reopen):
    seven = [f"n{i}" for i in range(7)]
    reopen().mask("m", seven, quorums_meet)
    reopen().mask("m", seven[:6], quorums_meet)
    with pytest.raises(ProtocolError, match=r"^cohort: "):
        reopen().mask("m", [*seven[:6], "other"], quorums_meet)
    with pytest.raises(ProtocolError, match=r"^cohort: "):
        reopen().mask("m", seven[:5], quorums_meet)
    reopen().mask("m", seven, quorums_meet)
    reopen().mask("m2", seven[:5], quorums_meet)


def test_nodes_of_a_group_come_and_go_and_no_others_join_them(reopen):
    reopen().together("run", ["a", "b", "c"], 4)
    reopen().together("run", ["a", "b", "d"], 4)
    reopen().together("run", ["e", "f", "g"], 4)  # another group
    for nodes in (["a", "b", "e"], ["a", "b", "h"], ["c", "d", "x", "y"]):
        with pytest.raises(ProtocolError, match=r"^regrouped: .* groups have 4"):
            reopen().together("run", nodes, 4)
    # Nothing of that is remembered.
    reopen().together("run", ["a", "b", "c", "d"], 4)
    reopen().together("run", ["e", "f", "h"], 4)
    with pytest.raises(ProtocolError, match="regrouped"):
        reopen().together("run", ["d", "h", "f"], 4)
    reopen().together("another run", ["d", "h", "f"], 4)
    with pytest.raises(ProtocolError, match="regrouped"):
        reopen().together("new", ["a", "b", "c", "d", "e"], 4)


def test_the_groups_of_the_last_runs_are_remembered(reopen):
    for i in range(RECENT):
        reopen().together(str(i), ["a", "b", "c"], 3)
    for i in range(RECENT):
        with pytest.raises(ProtocolError, match="regrouped"):
            reopen().together(str(i), ["b", "c", "d"], 3)


def test_a_run_whose_groups_are_forgotten_has_no_sums_any_more(reopen):
    reopen().together("first", ["a", "b", "c"], 3)
    for i in range(RECENT):
        reopen().together(str(i), ["a", "b", "c"], 3)
    for nodes in (["a", "d", "e"], ["a", "b", "c"], ["x", "y", "z"]):
        for _ in range(2):
            with pytest.raises(ProtocolError, match=r"^regrouped: .* are forgotten"):
                reopen().together("first", nodes, 3)
    reopen().together("new", ["a", "d", "e"], 3)
    reopen("another key").together("first", ["a", "d", "e"], 3)


def test_a_run_that_goes_on_is_not_forgotten(reopen):
    for i in range(3 * RECENT):
        reopen().together("long", ["a", "b", "c"], 3)
        reopen().together(str(i), ["a", "b", "c"], 3)
    with pytest.raises(ProtocolError, match="groups have 3"):
        reopen().together("long", ["a", "b", "d"], 3)


def test_what_is_masked_is_not_yet_opened(reopen):
    reopen().mask("m", ["a", "b", "c", "d"], quorums_meet)
    reopen().open("m", ["a", "b", "c"])


def test_of_earlier_models_only_the_same_sets_are_opened(reopen):
    for i in range(RECENT + 2):
        reopen().open(f"m{i}", ["a", "b", "c"])
    reopen().open("m0", ["a", "b", "c"])
    with pytest.raises(ProtocolError, match="reopened"):
        reopen().open("m0", ["d", "e", "f"])  # disjoint, but who could tell


def test_a_damaged_memory_is_not_taken_for_an_empty_one(tmp_path):
    context = make_context(1, {}, {})
    Journal(context, "k", tmp_path).train("m")
    path = tmp_path / "journal.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(path.read_text()[:-3])
    with pytest.raises(CheckpointError, match=r"another run\.seed"):
        Journal(context, "k", tmp_path)


DAMAGED = [
    b"",
    b"\xff",
    b"[]",
    b"null",
    b"7",
    b"[" * 100_000,
    b'{"k": []}',
    b'{"another key": []}',
    b'{"k": {"trained": {}}}',
    b'{"k": {"trained": [1]}}',
    b'{"k": {"masked": []}}',
    b'{"k": {"opened": {"m": "set"}}}',
    b'{"k": {"opened": {"m": [1]}}}',
    b'{"k": {"recent": []}}',
    b'{"k": {"recent": {"opened": []}}}',
    b'{"k": {"recent": {"opened": {"m": ["a"]}}}}',
    b'{"k": {"recent": {"opened": {"m": [[1]]}}}}',
    b'{"k": {"groups": []}}',
    b'{"k": {"groups": {"run": 1}}}',
    b'{"k": {"groups": {"run": ["a"]}}}',
    b'{"k": {"groups": {"run": [[null]]}}}',
]


@pytest.mark.parametrize("data", DAMAGED, ids=lambda data: data[:40])
def test_all_damage_is_told_as_such_and_with_its_cure(tmp_path, data):
    path = tmp_path / "journal.json"
    context = make_context(1, {}, {})
    open_one = Journal(context, "k", tmp_path)
    path.write_bytes(data)
    for use in (
        lambda: Journal(context, "k", tmp_path),
        lambda: open_one.open("m", ["a", "b", "c"]),
        lambda: open_one.together("run", ["a", "b", "c"], 3),
        lambda: open_one.trained("m"),
    ):
        with pytest.raises(CheckpointError, match=r"damaged.* another run\.seed"):
            use()
    assert path.read_bytes() == data


@pytest.mark.parametrize("record", [{"json": "[]"}, {"json": 7}, {"other": "{}"}])
def test_damage_in_the_state_of_a_simulated_node(record):
    context = make_context(1, {}, {})
    context.state[STATE] = ConfigRecord(record)
    with pytest.raises(CheckpointError, match="state is damaged"):
        Journal(context, "k", None)


def test_a_memory_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MAX_FILE", 100)
    context = make_context(1, {}, {})
    (tmp_path / "journal.json").write_bytes(b"{}" + b" " * 98)
    Journal(context, "k", tmp_path)
    (tmp_path / "journal.json").write_bytes(b"{}" + b" " * 99)
    with pytest.raises(CheckpointError, match="too large"):
        Journal(context, "k", tmp_path)


def test_what_was_written_is_read_again(tmp_path):
    context = make_context(1, {}, {})
    for i in range(RECENT + 2):
        found = Journal(context, "k", tmp_path)
        found.train(f"m{i}")
        found.mask(f"m{i}", ["a", "b", "c"], quorums_meet)
        found.open(f"m{i}", ["a", "b", "c"])
        found.together(f"run{i}", ["a", "b", "c"], 3)
    Journal(context, "k", tmp_path).open("m1", ["a", "b", "c"])


def test_a_second_process_sees_what_the_first_has_opened(reopen):
    first, second = reopen(), reopen()  # both have read an empty memory
    first.open("m", ["a", "b", "c"])
    with pytest.raises(ProtocolError, match="reopened"):
        second.open("m", ["a", "b"])
    second.open("m2", ["a", "b"])
    with pytest.raises(ProtocolError, match="reopened"):
        first.open("m2", ["a", "b", "c"])


def test_processes_take_turns_from_reading_to_writing(tmp_path):
    taking = Journal(make_context(1, {}, {}), "k", tmp_path)
    taking.open("m", ["a", "b", "c"])
    with ThreadPoolExecutor(1) as pool, (tmp_path / "journal.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        opening = pool.submit(taking.open, "m2", ["a", "b", "c"])
        with pytest.raises(NotYet):
            opening.result(timeout=0.1)
        fcntl.flock(other, fcntl.LOCK_UN)
        opening.result(timeout=10)


def test_a_refused_set_is_not_remembered(reopen):
    reopen().open("m", ["a", "b", "c"])
    for _ in range(2):
        with pytest.raises(ProtocolError, match="reopened"):
            reopen().open("m", ["a", "b", "d"])
