"""Who is in the federation: decryptors, moving keys, rosters and files."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from strategies.secure import federation as federation_module
from strategies.secure.federation import Federation
from strategies.secure.identity import Identity, Roster
from strategies.secure.keys import JobKey, parameters_of
from strategies.secure.told import Told
from strategies.secure.wire import SECURE
from tests.strategies.secure.support import JOBS, Round
from tests.support.federation import model, weights
from truststram.errors import ConfigError, ProtocolError


def test_the_decryptor_never_trains():
    trained = []

    def amount(partition, number):
        trained.append(partition)
        return 0.1

    f = Round(JOBS["decryptor"], 5, amount)
    f.run()
    assert sorted(trained) == [0, 1, 2, 3]
    [message] = f.ask()[:1]
    assert str(f.grid.get_node_ids()[4]) not in message.content[SECURE]["cohort"]


def test_without_a_decryptor_the_run_stops():
    f = Round(JOBS["decryptor"], 4)
    f.ask()
    federation = f.layer.federation
    federation.decryptors.clear()
    federation._names.clear()
    members = [replace(m, role="client") for m in federation.roster]
    federation.roster = Roster(members)
    with pytest.raises(ConfigError, match="decryptor"):
        f.ask()


def test_a_key_moves_on_only_from_a_node_that_is_away():
    f = Round(JOBS["bfv"], 4)
    f.ask()
    federation, [one, two, *_] = f.layer.federation, f.grid.get_node_ids()
    first, second = list(federation.roster)[:2]
    federation.bind(one, first)
    for node, member in ((two, first), (one, second)):
        with pytest.raises(ProtocolError, match="unknown-node"):
            federation.bind(node, member)
    restarted = max(f.grid.get_node_ids()) + 1
    federation.grid = Connected([two, restarted])
    federation.bind(restarted, first)
    federation.bind(restarted, first)
    with pytest.raises(ProtocolError, match="unknown-node"):
        federation.bind(restarted, second)


def test_a_decryptor_that_was_started_again_is_found_and_the_old_one_not_asked():
    f = Round(JOBS["decryptor"], 5)
    f.ask()
    federation, old = f.layer.federation, f.grid.get_node_ids()[4]
    assert federation.decryptors == {old}
    # The same node under another id: the grid of the server maps it to that context.
    new, grid = old + 1, f.grid

    class Restarted:
        def get_node_ids(self):
            return [*grid.get_node_ids()[:4], new]

        def push_messages(self, messages):
            assert [m.metadata.dst_node_id for m in messages] == [new]
            messages[0].metadata.dst_node_id = old
            return grid.push_messages(messages)

        def pull_messages(self, ids):
            replies = list(grid.pull_messages(ids))
            for reply in replies:
                reply.metadata.__dict__["_src_node_id"] = new
            return replies

    federation.grid = Restarted()
    [phase] = federation.find_decryptors(2)
    assert (len(phase.replies), phase.lost) == (1, 0)
    assert federation.decryptors == {new}
    assert federation._nodes["4"] == new
    assert old not in federation._names


def test_a_refused_key_is_not_remembered():
    f = Round(JOBS["bfv"], 4)
    f.ask()
    federation, [one, two, *_] = f.layer.federation, f.grid.get_node_ids()
    first, second = list(federation.roster)[:2]
    federation.bind(one, first)
    with pytest.raises(ProtocolError, match="unknown-node"):
        federation.bind(one, second)
    federation.bind(two, second)


def test_a_stranger_that_never_answers_is_asked_once_and_briefly():
    f = Round(JOBS["decryptor"], 5)
    f.ask()
    federation, known = f.layer.federation, f.grid.get_node_ids()
    assert federation.find_decryptors(2) == []  # all that the roster has is known
    asked = []

    class Silent:
        def get_node_ids(self):
            return [*known, 99]

        def push_messages(self, messages):
            asked.extend(m.metadata.dst_node_id for m in messages)
            return ["never"] * len(messages)

        def pull_messages(self, ids):
            return []

    federation.grid = Silent()
    assert federation.find_decryptors(3) == []
    # Another decryptor of the roster is missing: it could be the stranger.
    more = replace(Identity.generate("second").member, role="decryptor")
    federation.roster = Roster([*federation.roster, more])
    waits = []
    hello = federation._hello
    federation._hello = lambda nodes, r, wait: waits.append(wait) or hello(nodes, r, 0)
    for number in (4, 5):
        federation.find_decryptors(number)
    assert asked == [99]
    assert waits == [30.0]
    # Without any decryptor, they are asked until the deadline, and that ends.
    federation.decryptors.clear()
    federation._names.clear()
    clock = iter(range(0, 10_000, 100))
    federation_module.time.monotonic, real = lambda: next(clock), time.monotonic
    try:
        with pytest.raises(ConfigError, match="decryptor is connected"):
            federation.find_decryptors(6)
    finally:
        federation_module.time.monotonic = real
    assert len(waits) > 2


def test_two_decryptors_are_refused_where_one_is_trusted_to_add():
    f = Round(JOBS["decryptor adds"], 5)
    f.ask()
    more = replace(Identity.generate("second").member, role="decryptor")
    roster = Roster([*f.layer.federation.roster, more])
    f.layer.federation.roster = roster
    made = Federation(f.job, "1", f.grid, roster, simulated=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Federation, "of", lambda *args: made)
        f.layer._federation = None
        with pytest.raises(ConfigError, match="2 decryptors"):
            f.ask()


class Connected:
    """As much of a grid as says who is connected."""

    def __init__(self, nodes: list[int]) -> None:
        self.get_node_ids = lambda: nodes


def test_the_servers_operator_must_give_a_roster():
    f = Round(JOBS["bfv"], 4)
    f.ask()
    f.layer._federation = None

    class Other(type(f.grid).__mro__[1]):  # a grid of a deployment
        get_node_ids = push_messages = pull_messages = None
        run = set_run = create_message = send_and_receive = None

    with pytest.raises(ConfigError, match="TRUSTSTRAM_ROSTER"):
        f.layer._known(Other())


def test_deployed_nodes_and_server_work_from_files(tmp_path, monkeypatch):
    job = JOBS["bfv"]
    f = Round(job, 4)
    nodes = [Identity.generate(f"hospital-{i}") for i in range(4)]
    roster = "\n".join(node.member.line() for node in nodes)
    key = JobKey.generate(parameters_of(job))
    (tmp_path / "roster.txt").write_text(roster)
    monkeypatch.setenv("TRUSTSTRAM_ROSTER", str(tmp_path / "roster.txt"))
    for i, (node, at) in enumerate(zip(nodes, f.grid.get_node_ids(), strict=True)):
        folder = tmp_path / str(i)
        folder.mkdir()
        key.save(folder)
        node.save(folder / "identity.key")
        (folder / "roster.txt").write_text(roster)
        f.grid.context(at).node_config["secure-keys"] = str(folder)
    arrays, _ = f.run()
    assert weights(arrays) == pytest.approx(0.525, abs=1e-4)
    assert f.told("secure-plan")[0]["keys"] == "operator"
    assert (tmp_path / "0" / "journal.json").exists()
    # A server that was started again, for the same model, may not leave one out. Nor
    # may one that was killed before it recorded the sum, whoever is left out.
    f.base, f.number = model(0.5), 0
    f.finish(f.replies()[1:])
    assert f.codes == ["cohort"]
    for lost in range(4):
        f.layer._told, f.number = Told(), 0
        replies = f.replies()
        del replies[lost]
        told = len(f.told("secure-sum"))
        f.finish(replies)
        assert f.codes[1 + lost :] == ["not-decrypted"]
        assert "reopened" in f.told("secure-refused")[1 + lost]["detail"]
        assert len(f.told("secure-sum")) == told
    f.layer._told, f.number = Told(), 0
    assert f.run()[0] is not None  # all of them again
