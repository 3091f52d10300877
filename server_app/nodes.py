"""The nodes of a federation as strategies see them: named, ordered, waited for.

A node id is random in a simulation, so nothing may depend on it. The stable name is the
partition in a simulation (nodes are asked once) and the node id in a deployment (the
SuperLink ties it to the node's registered key). Nodes are always listed in the order of
their names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from truststram import __version__
from truststram._flower import is_simulation, set_sender
from truststram.engine import LocalGrid
from truststram.errors import RunError
from truststram.records import content_bytes

__all__ = ["NamedGrid", "name_order"]

POLL_SECONDS = 0.2
# For the answers of late or restarted nodes, while the others wait for their round.
GREETING_SECONDS = 30.0
# Flower's codes for a message or a reply that was lost, or a node that is away.
NOT_REACHED = (3, 4, 5)


def name_order(name: str) -> tuple[int, str]:
    """Sort key: numbers by value, before other names."""
    return (int(name), "") if name.isdecimal() else (2**63, name)


class NamedGrid(Grid):
    """A Grid that orders nodes by stable name and never waits for ever.

    Stock strategies poll ``get_node_ids`` until enough nodes are connected, without an
    end; here the wait is bounded. Errors that the SuperLink reports in the place of a
    node that is away are that node's replies.

    Parameters
    ----------
    grid : Grid
        Flower's or the in-process one.
    min_nodes : int
        Nodes that must be connected.
    join_timeout : float
        Seconds after which too few nodes are a RunError.
    refuse : callable
        ``refuse(node, reason)`` is told of a node that cannot take part.
    offer : ConfigRecord, optional
        What every node must agree to before it takes part. With it deployed nodes are
        asked too, and a node whose reply was an error is asked again: a restarted one
        has forgotten what it agreed to.
    greeted : callable, optional
        ``greeted(asked, answered, bytes_down, bytes_up)`` is told what an offer to some
        nodes took; a greeting without an offer is part of the simulation.
    """

    def __init__(
        self,
        grid: Grid,
        min_nodes: int,
        join_timeout: float,
        refuse: Callable[[str, str], object],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        offer: ConfigRecord | None = None,
        greeted: Callable[[int, int, int, int], object] | None = None,
    ) -> None:
        self._grid = grid
        self._min_nodes, self._join_timeout = min_nodes, join_timeout
        self._refuse, self._clock, self._sleep = refuse, clock, sleep
        self._simulated = is_simulation(grid) or isinstance(grid, LocalGrid)
        self._offer, self._greeted = offer, greeted
        self._names: dict[int, str] = {}
        self._refused: dict[int, str] = {}
        self._failed: set[int] = set()  # to be asked again
        self._asked: dict[str, int] = {}  # message without a reply -> its node
        self._silent: dict[int, float] = {}  # who did not answer a greeting, and when
        self._short_since: float | None = None

    @property
    def simulated(self) -> bool:
        """Whether all nodes are on this machine, where they wait for each other."""
        return self._simulated

    def name_of(self, node_id: int) -> str:
        """Return the stable name of a node."""
        return self._names.get(node_id, str(node_id))

    def get_node_ids(self) -> list[int]:
        """Return connected nodes in the order of their names.

        Raises
        ------
        RunError
            If fewer than ``min_nodes`` were connected for ``join_timeout`` seconds.
        """
        connected = set(self._grid.get_node_ids())
        # An operator may have changed what a node was refused for.
        self._refused = {n: r for n, r in self._refused.items() if n in connected}
        self._silent = {n: t for n, t in self._silent.items() if n in connected}
        known = self._names.keys() - self._failed
        new, timeout = connected - known - self._refused.keys(), self._join_timeout
        if len(known & connected) >= self._min_nodes:
            # The run goes on without the new ones: it is not kept waiting by them.
            since = self._clock() - self._join_timeout
            new = {n for n in new if self._silent.get(n, since) <= since}
            timeout = min(timeout, GREETING_SECONDS)
        self._learn_names(new, timeout)
        usable = [n for n in connected if n in self._names]
        if self._simulated and connected and connected <= self._refused.keys():
            # In a simulation nobody else will come: no use in waiting.
            reason = next(iter(self._refused.values()))
            raise RunError(f"No node can take part in the run: it {reason}")
        if len(usable) >= self._min_nodes:
            self._short_since = None
        else:
            now = self._clock()
            self._short_since = now if self._short_since is None else self._short_since
            if now - self._short_since > self._join_timeout:
                raise RunError(
                    f"The job needs {self._min_nodes} nodes and {len(usable)} are "
                    f"connected after {self._join_timeout:g} s. Start more SuperNodes, "
                    "or lower round.min-nodes (with a secure sum also "
                    f"secure.min-cohort).{self._why_refused(connected)}"
                )
        return sorted(usable, key=lambda n: name_order(self._names[n]))

    def wait(self) -> list[int]:
        """Return the nodes once enough are connected; RunError at the time limit."""
        while len(nodes := self.get_node_ids()) < self._min_nodes:
            self._sleep(POLL_SECONDS)
        return nodes

    def _why_refused(self, connected: set[int]) -> str:
        """Say why connected nodes were turned away, if any were."""
        reasons = [self._refused[n] for n in sorted(connected & self._refused.keys())]
        if not reasons:
            return ""
        return f" {len(reasons)} cannot take part; the first {reasons[0][:300]}"

    def _learn_names(self, new: set[int], timeout: float) -> None:
        if not new:
            return
        if not self._simulated and self._offer is None:
            self._names |= {node: str(node) for node in new}
            return
        for node, about in self._hello(sorted(new), timeout).items():
            self._failed.discard(node)
            others = [known for n, known in self._names.items() if n != node]
            # A deployed node does not choose its name: the SuperLink knows who it is.
            name = str(about.get("name", "")) if self._simulated else str(node)
            version = str(about.get("version", ""))
            if version != __version__:
                reason = f"runs truststram {version}, the server {__version__}"
            elif not name or len(name) > 100 or name in others:
                reason = "has no name of its own"
            else:
                self._names[node] = name
                continue
            self._turn_away(node, reason)

    def _turn_away(self, node: int, reason: str) -> None:
        self._names.pop(node, None)
        self._failed.discard(node)
        self._refused[node] = reason
        self._refuse(str(node), reason)

    def _hello(self, nodes: list[int], timeout: float) -> dict[int, ConfigRecord]:
        """Ask nodes for their names; silent ones are asked again later."""
        query = RecordDict({"config": self._offer or ConfigRecord()})
        messages = [Message(query, node, MessageType.QUERY) for node in nodes]
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        if self._offer is not None and self._greeted is not None:
            valid = [r.content for r in replies if r.has_content()]
            down, up = len(nodes) * content_bytes(query), sum(map(content_bytes, valid))
            self._greeted(len(nodes), len(valid), down, up)
        answers = {}
        self._silent |= dict.fromkeys(nodes, self._clock())
        for reply in replies:
            if reply.has_error():
                if reply.error.code not in NOT_REACHED:
                    reason = f"cannot start: {reply.error.reason}"
                    self._turn_away(reply.metadata.src_node_id, reason)
            elif "hello" in reply.content.config_records:
                about = reply.content.config_records["hello"]
                answers[reply.metadata.src_node_id] = about
        for node in answers:
            self._silent.pop(node, None)
        return answers

    def set_run(self, run: Run) -> None:
        """Forward."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Forward."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message; deprecated in Flower in favour of ``Message(...)``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Forward."""
        messages = list(messages)
        ids = list(self._grid.push_messages(messages))
        nodes = (message.metadata.dst_node_id for message in messages)
        self._asked |= dict(zip(ids, nodes, strict=False))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Forward; with an offer, note who failed and must be asked again."""
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            node = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if node is not None and reply.has_error():
                set_sender(reply, node)
        if self._offer is not None:
            failed = {r.metadata.src_node_id for r in replies if r.has_error()}
            self._failed |= failed & self._names.keys()
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Forward."""
        return self._grid.send_and_receive(messages, timeout=timeout)
