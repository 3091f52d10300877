"""A node's own count of its releases: what it outlives, and what it refuses."""

from __future__ import annotations

import logging
import stat
import threading

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from strategies.mechanisms.mod import private_mod
from strategies.mechanisms.spending import ROUNDS, Spending
from strategies.update import delta_mod
from strategies.withheld import WithheldError
from tests.support.federation import model, plus
from truststram._flower import become_task, make_context, set_message_id
from truststram.errors import ProtocolError
from truststram.job import Job

LOCAL = {
    "privacy.mechanism": "gaussian",
    "privacy.trust": "local",
    "privacy.epsilon": 10.0,
    "privacy.evaluate-epsilon": 8.0,
    "round.evaluate": "clients",
    "train.rounds": 2,
}
EXAMPLES = {**LOCAL, "privacy.mechanism": "dp-sgd", "privacy.unit": "example"}
JOBS = pytest.mark.parametrize("keys", [LOCAL, EXAMPLES], ids=["client", "example"])
SPENT = "privacy budget is spent after"


def started(folder, flower_run=1, node=7, **config):
    """A node after the start of its SuperNode: nothing but its folder is left."""
    become_task(flower_run)
    return make_context(node, {"state-path": str(folder), **config}, {})


def ask(context, keys=LOCAL, run="first", kind="train"):
    """Return the node's reply in a round of the run that the server calls ``run``."""
    config = ConfigRecord({"server-round": 1} | ({"run-name": run} if run else {}))
    content = RecordDict({"arrays": model(0.5), "config": config})
    message = Message(content, dst_node_id=7, message_type=kind)
    set_message_id(message)

    def app(message, context):
        arrays = plus(message.content["arrays"], 0.1)
        metrics = MetricRecord({"accuracy": 0.5, "num-examples": 9})
        made = {"arrays": arrays} if kind == "train" else {}
        return Message(RecordDict({**made, "metrics": metrics}), reply_to=message)

    def with_delta(m, c):
        return delta_mod(m, c, app)

    return private_mod(Job.of(keys))(message, context, with_delta)


@JOBS
def test_it_outlives_a_restart_of_the_node(tmp_path, keys):
    for _ in range(2):
        assert ask(started(tmp_path), keys).has_content()
    for _ in range(2):
        with pytest.raises(WithheldError, match=SPENT):
            ask(started(tmp_path), keys)


@JOBS
def test_it_outlives_a_resume_which_is_another_run_of_flower(tmp_path, keys):
    ask(started(tmp_path, 1), keys)
    ask(started(tmp_path, 2), keys)
    with pytest.raises(WithheldError, match=SPENT):
        ask(started(tmp_path, 3), keys)


def test_evaluations_are_part_of_it(tmp_path):
    assert ask(started(tmp_path), kind="evaluate").has_content()
    with pytest.raises(WithheldError, match=SPENT):
        ask(started(tmp_path), kind="evaluate")
    for _ in range(2):
        ask(started(tmp_path))
    with pytest.raises(WithheldError, match=f"{SPENT} 3 releases"):
        ask(started(tmp_path))


def test_noise_of_another_plan_is_refused_after_a_restart_too(tmp_path):
    ask(started(tmp_path))
    with pytest.raises(WithheldError, match="after 1 releases with noise of another"):
        ask(started(tmp_path, 2), {**LOCAL, "train.rounds": 3})


@JOBS
def test_another_run_has_its_own_and_forgets_none(tmp_path, keys):
    for _ in range(2):
        ask(started(tmp_path), keys)
    for number in range(10):
        node = started(tmp_path, 2 + number)
        assert ask(node, keys, run=f"other-{number}").has_content()
    with pytest.raises(WithheldError, match=SPENT):
        ask(started(tmp_path), keys)


def test_the_nodes_log_says_when_budgets_add_up(tmp_path, caplog):
    logging.getLogger("flwr").propagate = True
    with caplog.at_level(logging.WARNING, "flwr"):
        for _ in range(2):
            ask(started(tmp_path))
        assert caplog.text == ""
        ask(started(tmp_path, 2), run="second\nrun")
    assert "run 'second\\nrun' begins a privacy budget on this node" in caplog.text
    assert "1 other runs had theirs" in caplog.text


def test_without_a_name_flowers_run_is_the_run(tmp_path):
    for _ in range(2):
        ask(started(tmp_path, 1), run="")
    with pytest.raises(WithheldError, match=SPENT):
        ask(started(tmp_path, 1), run="")
    assert ask(started(tmp_path, 2), run="").has_content()


@JOBS
@pytest.mark.parametrize("simulated", [False, True])
def test_one_flower_run_has_one_name_and_one_budget(tmp_path, keys, simulated):
    """Whatever names a server sends, the node releases what was planned, and no more.

    In a deployment also if the SuperNode is started again for each of them.
    """
    context, released, reasons = started(tmp_path, simulated=True), 0, set()
    for name in ["first", *(f"name-{i}" for i in range(9)), "", "first"]:
        for _ in range(2):
            node = context if simulated else started(tmp_path)
            try:
                released += ask(node, keys, run=name).has_content()
            except WithheldError as refused:
                reasons.add((name == "first", str(refused).rsplit(": ")[-1]))
    assert released == 2
    assert {known for known, _ in reasons} == {False, True}
    for known, reason in reasons:
        assert (SPENT if known else "had another name before") in reason
    # A refused name has no count, and another Flower run may have it.
    if not simulated:
        assert len(counts(tmp_path)) == 1
    again = started(tmp_path, 2, simulated=simulated)
    assert ask(again, keys, run="name-0").has_content()


def test_a_run_that_began_without_a_name_gets_none_later(tmp_path):
    ask(started(tmp_path), run="")
    with pytest.raises(WithheldError, match="had another name before"):
        ask(started(tmp_path), run="first")


def test_a_damaged_name_is_no_fresh_budget(tmp_path):
    ask(started(tmp_path))
    [path] = tmp_path.glob("7/flower-runs/*/name")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"")
    for name in ("first", "second"):
        with pytest.raises(WithheldError, match="name of this run is damaged"):
            ask(started(tmp_path), run=name)
    assert ask(started(tmp_path, 2), run="second").has_content()


def test_nodes_of_one_machine_count_for_themselves(tmp_path):
    for node in (7, 8):
        for _ in range(2):
            ask(started(tmp_path, node=node))
        with pytest.raises(WithheldError, match=SPENT):
            ask(started(tmp_path, node=node))


def test_a_simulated_node_leaves_nothing_on_the_disk(tmp_path):
    context = started(tmp_path, simulated=True)
    for _ in range(2):
        ask(context)
    with pytest.raises(WithheldError, match=SPENT):
        ask(context)
    assert list(tmp_path.iterdir()) == []
    assert ask(started(tmp_path, simulated=True)).has_content()


def counts(folder):
    return list(folder.glob("7/privacy/*/count"))


@pytest.mark.parametrize("damage", [b"", b"x" * 100])
def test_a_damaged_count_is_no_fresh_budget(tmp_path, damage):
    ask(started(tmp_path))
    [path] = counts(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(damage)
    with pytest.raises(WithheldError, match="count of releases is damaged"):
        ask(started(tmp_path))
    assert ask(started(tmp_path, 2), run="other").has_content()


def test_what_cannot_be_counted_is_not_released(tmp_path, monkeypatch, caplog):
    """And the server does not learn where the node keeps things."""
    logging.getLogger("flwr").propagate = True

    def full(*_):
        raise OSError(28, "No space left on device")

    ask(started(tmp_path))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WithheldError) as caught:
        ask(started(tmp_path))
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.__context__ is None
    assert "No space left" in caplog.text
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(WithheldError, match="cannot keep its count"):
        ask(started(tmp_path / "file"))


@pytest.mark.parametrize("name", [7, b"name", ["a"], "x" * 201])
def test_hostile_names_of_runs_are_refused(tmp_path, name):
    config = ConfigRecord({"run-name": name})
    content = RecordDict({"arrays": ArrayRecord(), "config": config})
    context = started(tmp_path)
    message = Message(content, dst_node_id=7, message_type="train")
    with pytest.raises(ProtocolError, match="name of a run"):
        Spending(message, context)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc", "/tmp", "", "\0"])
def test_a_name_is_no_path(tmp_path, name):
    ask(started(tmp_path / "state"), run=name)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    [path] = counts(tmp_path / "state")
    assert len(path.parent.name) == 32


def test_two_processes_never_count_the_same_release(tmp_path):
    """Threads here: the lock is between file descriptors."""
    content = RecordDict({"config": ConfigRecord({"run-name": "first"})})
    context = started(tmp_path)
    message = Message(content, dst_node_id=7, message_type="train")
    before, refused = [], []

    def count():
        spending = Spending(message, context)
        for _ in range(10):
            try:
                before.append(spending.count(ROUNDS, 25))
            except WithheldError:
                refused.append(1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(before) == list(range(25))
    assert len(refused) == 15
