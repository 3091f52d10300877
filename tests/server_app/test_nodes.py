"""Nodes have stable names, and nobody is waited for without an end."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from server_app.nodes import NamedGrid, name_order
from tests.support.federation import config, model
from truststram import __version__
from truststram._flower import SERVER_NODE_ID, set_message_id, set_sender
from truststram.engine import LocalGrid
from truststram.errors import RunError


def app(name=lambda partition: str(partition), version=__version__):
    app = ClientApp()

    @app.query()
    def hello(message, context):
        partition = context.node_config["partition-id"]
        about = ConfigRecord({"name": name(partition), "version": version})
        return Message(RecordDict({"hello": about}), reply_to=message)

    return app


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def named(grid, min_nodes=2, timeout=60.0):
    clock, refused = Clock(), []
    grid = NamedGrid(
        grid, min_nodes, timeout, lambda *r: refused.append(r), clock, clock.sleep
    )
    return grid, clock, refused


class DeployedGrid:
    def __init__(self, *nodes):
        self.nodes = list(nodes)

    def get_node_ids(self):
        return self.nodes


def test_numbers_are_ordered_by_value():
    assert sorted(["10", "9", "x", "100"], key=name_order) == ["9", "10", "100", "x"]


def test_simulated_nodes_are_named_and_ordered_by_partition():
    grid, _, _ = named(LocalGrid(app(lambda p: str(19 - p)), 20))
    nodes = grid.wait()
    assert [grid.name_of(n) for n in nodes] == [str(i) for i in range(20)]
    assert nodes == sorted(nodes, reverse=True)


def test_deployed_nodes_are_named_by_their_id():
    grid, _, _ = named(DeployedGrid(77, 5, 123))
    assert grid.wait() == [5, 77, 123]
    assert grid.name_of(77) == "77"


def test_waiting_for_nodes_ends():
    grid, clock, _ = named(DeployedGrid(5), min_nodes=3, timeout=30)
    with pytest.raises(RunError, match="needs 3 nodes and 1 are connected after 30 s"):
        grid.wait()
    assert clock.now < 31


def test_nodes_that_join_in_time_are_found():
    deployed = DeployedGrid(5)
    grid, clock, _ = named(deployed, min_nodes=2)
    sleep = clock.sleep

    def join(seconds):
        sleep(seconds)
        if clock.now > 10:
            deployed.nodes.append(6)

    grid._sleep = join
    assert grid.wait()[:2] == [5, 6]


def test_a_stock_strategy_does_not_wait_for_ever(monkeypatch):
    grid, clock, _ = named(DeployedGrid(5), min_nodes=1, timeout=5)
    grid._min_nodes = 4  # what FedAvg below asks for, as the job would say
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", clock.sleep)
    with pytest.raises(RunError, match="Start more SuperNodes"):
        list(FedAvg(min_available_nodes=4).configure_train(1, model(), config(), grid))


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (app(version="0.0.1"), "runs truststram 0.0.1"),
        (app(name=lambda p: ""), "has no name of its own"),
        (app(name=lambda p: "n" * 101), "has no name of its own"),
        (ClientApp(), "cannot start"),
    ],
)
def test_simulated_nodes_that_cannot_take_part_end_the_run_at_once(client, reason):
    grid, clock, refused = named(LocalGrid(client, 3))
    with pytest.raises(RunError, match=reason):
        grid.wait()
    assert len(refused) == 3
    assert clock.now == 0


def test_two_nodes_of_the_same_name_do_not_both_count():
    grid, _, refused = named(LocalGrid(app(lambda p: str(p // 2)), 6))
    assert [grid.name_of(n) for n in grid.wait()] == ["0", "1", "2"]
    assert len(refused) == 3


class Offered(DeployedGrid):
    """Deployed nodes that answer a hello with what ``answer`` says of their id."""

    def __init__(self, answer, *nodes):
        super().__init__(*nodes)
        self.answer, self.asked, self.timeouts = answer, [], []

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        self.timeouts.append(timeout)
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked.append((node, dict(message.content["config"])))
            found = self.answer(node)
            if found is None:
                continue
            about = ConfigRecord({"name": "mine", "version": __version__})
            content = found or RecordDict({"hello": about})
            replies.append(Message(content, reply_to=message))
        return replies

    def pull_messages(self, ids):
        return [self.reply] if hasattr(self, "reply") else []


def offered(answer, *nodes, min_nodes=1):
    clock, refused = Clock(), []
    deployed = Offered(answer, *nodes)
    grid = NamedGrid(
        *(deployed, min_nodes, 60.0, lambda *r: refused.append(r)),
        *(clock, clock.sleep),
        offer=ConfigRecord({"plan": "x"}),
    )
    return grid, deployed, refused


def test_with_an_offer_deployed_nodes_are_asked_once_and_keep_their_own_names():
    grid, deployed, refused = offered(lambda node: {}, 5, 77)
    assert grid.wait() == grid.wait() == [5, 77]
    assert deployed.asked == [(5, {"plan": "x"}), (77, {"plan": "x"})]
    assert (grid.name_of(5), refused) == ("5", [])


def test_a_node_that_refuses_the_offer_is_left_out_and_says_why():
    def answer(node):
        return Error(2, "no TensorFlow") if node == 5 else {}

    grid, _, refused = offered(answer, 5, 77)
    assert grid.wait() == [77]
    assert refused == [("5", "cannot start: no TensorFlow")]
    grid, _, _ = offered(answer, 5, 77, min_nodes=2)
    with pytest.raises(RunError, match=r"1 cannot take part; the first .* no Tens"):
        grid.wait()


@pytest.mark.parametrize("silence", [None, Error(5, "node unavailable")])
def test_a_silent_node_is_asked_again(silence):
    answers = [silence, {}]
    grid, deployed, refused = offered(lambda node: answers.pop(0), 5)
    assert grid.wait() == [5]
    assert (len(deployed.asked), refused) == (2, [])


def test_a_refused_node_that_was_started_again_is_asked_again():
    answers = {5: Error(2, "no TensorFlow"), 77: {}}
    grid, deployed, refused = offered(answers.get, 5, 77)
    assert grid.wait() == grid.wait() == [77]
    assert len(refused) == 1
    answers[5] = {}
    assert grid.wait() == [77]  # not asked while it stays connected
    deployed.nodes = [77]
    grid.wait()
    deployed.nodes = [5, 77]
    assert grid.wait() == [5, 77]


def test_a_run_that_has_its_nodes_is_not_kept_waiting_by_silent_ones():
    answers = {5: {}, 77: None}
    grid, deployed, _ = offered(answers.get, 5)
    assert grid.wait() == [5]
    assert deployed.timeouts == [60.0]  # nobody else is there
    deployed.nodes = [5, 77]
    assert grid.wait() == grid.wait() == [5]
    assert deployed.timeouts == [60.0, 30.0]
    grid._clock.now += 60
    answers[77] = {}
    assert grid.wait() == [5, 77]
    # Failed once, then silent.
    deployed.reply = Message(Error(2, "x"), reply_to=Message(RecordDict(), 77, "train"))
    grid.pull_messages([])
    answers[77] = None
    assert grid.wait() == grid.wait() == [5, 77]
    assert deployed.timeouts == [60.0, 30.0, 30.0, 30.0]


@pytest.mark.parametrize(
    ("reply", "asked"), [(Error(2, "forgot"), 2), (RecordDict(), 1)]
)
def test_a_node_whose_reply_was_an_error_is_asked_again(reply, asked):
    grid, deployed, refused = offered(lambda node: {}, 5)
    grid.wait()
    deployed.reply = Message(reply, reply_to=Message(RecordDict(), 5, "train"))
    grid.pull_messages([])
    assert grid.wait() == grid.wait() == [5]
    assert (len(deployed.asked), refused) == (asked, [])


class Away(DeployedGrid):
    """Replies in the place of each node, as the SuperLink does for one that is away."""

    def push_messages(self, messages):
        self.messages = {set_message_id(message): message for message in messages}
        return list(self.messages)

    def pull_messages(self, ids):
        replies = [Message(self.found, reply_to=self.messages[i]) for i in ids]
        for reply in replies:
            set_sender(reply, SERVER_NODE_ID)
        return replies


def test_an_error_of_the_superlink_is_the_reply_of_the_node_that_is_away():
    deployed = Away(5, 77)
    grid, _, _ = named(deployed)
    grid.wait()
    asked = [Message(RecordDict(), node, "train") for node in (77, 5)]
    deployed.found = Error(5, "node unavailable")
    replies = grid.pull_messages(grid.push_messages(iter(asked)))
    assert [reply.metadata.src_node_id for reply in replies] == [77, 5]
    # Whose content it is, the SuperLink has checked.
    deployed.found = RecordDict()
    [reply] = grid.pull_messages(grid.push_messages(asked[:1]))
    assert reply.metadata.src_node_id == SERVER_NODE_ID


def test_a_node_that_was_away_is_offered_the_plan_again():
    grid, deployed, _ = offered(lambda node: {}, 5)
    grid.wait()
    message = Message(RecordDict(), 5, "train")
    deployed.push_messages = lambda messages: [set_message_id(m) for m in messages]
    ids = grid.push_messages([message])
    deployed.reply = Message(Error(5, "node unavailable"), reply_to=message)
    set_sender(deployed.reply, SERVER_NODE_ID)
    grid.pull_messages(ids)
    grid.wait()
    assert len(deployed.asked) == 2
