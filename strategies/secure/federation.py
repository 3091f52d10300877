"""Who is in the federation, from the server's view: roster, decryptors, one key a node.

In deployment the roster is the operator's file (:func:`.keys.server_roster`); in a
simulation the server makes all keys of the run (:mod:`.automatic`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from truststram._flower import is_simulation
from truststram.engine import LocalGrid
from truststram.errors import ConfigError, ProtocolError
from truststram.exchange import Exchange, Phase
from truststram.job import Job

from . import automatic
from .identity import DECRYPTOR, Member, Roster
from .keys import ROSTER_VARIABLE, JobKey, parameters_of, server_roster
from .terms import HELLO, Request
from .wire import SECURE, frame_of, open_frame

__all__ = ["Federation"]

# How long nodes that must not be waited for have to say who they are, at first.
HELLO_SECONDS = 30.0


@dataclass
class Federation:
    """The nodes of a run.

    Attributes
    ----------
    job : Job
    run : str
        Flower's id.
    grid : Grid
    roster : Roster
    simulated : bool
        The keys were made here.
    decryptors : set of int
        Connected nodes that decrypt and are never asked to train.
    """

    job: Job
    run: str
    grid: Grid
    roster: Roster
    simulated: bool
    decryptors: set[int] = field(default_factory=set)
    _names: dict[int, str] = field(default_factory=dict)
    _nodes: dict[str, int] = field(default_factory=dict)
    _asked: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, job: Job, grid: Grid, run: str) -> Federation:
        """Return the federation of a run.

        Raises
        ------
        ConfigError
            In deployment without a roster.
        """
        roster = server_roster()
        if roster is not None:
            return cls(job, run, grid, roster, simulated=False)
        inner = getattr(grid, "_grid", grid)  # our own grid has Flower's inside
        if not (is_simulation(inner) or isinstance(inner, LocalGrid)):
            raise ConfigError(
                "The job has secure sums and the server has no roster. Collect the "
                "nodes' public keys with truststram keys roster, and start the server "
                f"with {ROSTER_VARIABLE}=/path/of/roster.txt in its environment."
            )
        parameters = parameters_of(job)
        key = JobKey.generate(parameters) if parameters else None
        nodes = len(list(grid.get_node_ids()))
        shared = not isinstance(inner, LocalGrid)
        made = automatic.create(int(run), nodes, key, shared=shared)
        return cls(job, run, grid, made.roster, simulated=True)

    def bind(self, node: int, member: Member) -> None:
        """Tie a Flower node to an identity: one key has one node, and the reverse.

        A SuperNode without Flower's authentication has another id after each start, so
        a key may move on from a node that is away.

        Raises
        ------
        ProtocolError
            ``unknown-node``, if the node was seen with another key before, or the key
            with another node that is still connected.
        """
        name = self._names.get(node, member.name)
        last = self._nodes.get(member.name, node)
        moved = last != node
        if name != member.name or (moved and last in self.grid.get_node_ids()):
            raise ProtocolError("unknown-node", "the key belongs to another node")
        if moved:
            del self._names[last]
        self._names[node], self._nodes[member.name] = member.name, node

    def find_decryptors(self, server_round: int) -> list[Phase]:
        """Ask nodes who they are, as long as a decryptor of the roster is not found.

        Without one, all nodes that are not known are asked again and again until
        ``round.deadline``; with one, each node that was not asked yet once and briefly:
        a node that never answers does not hold up every round.

        Returns
        -------
        list of Phase
            What was exchanged.

        Raises
        ------
        ConfigError
            If no decryptor is connected.
        """
        start, wait, phases = time.monotonic(), HELLO_SECONDS, list[Phase]()
        wanted = sum(member.role == DECRYPTOR for member in self.roster)
        answered = set[int]()
        while True:
            connected = set(self.grid.get_node_ids())
            self.decryptors &= connected
            unknown = sorted(connected - set(self._names) - answered)
            if self.decryptors:
                unknown = [node for node in unknown if node not in self._asked]
            left = self.job.round.deadline - (time.monotonic() - start)
            if len(self.decryptors) >= wanted or not unknown or left <= 0:
                break
            phases.append(self._hello(unknown, server_round, min(wait, left)))
            answered |= {reply.metadata.src_node_id for reply in phases[-1].replies}
            wait *= 2  # a node that is slow gets more time, not more questions
        if not self.decryptors:
            raise ConfigError(
                "secure.key-holder = decryptor, and no node of the roster's role "
                "decryptor is connected."
            )
        return phases

    def _hello(self, nodes: list[int], server_round: int, deadline: float) -> Phase:
        """Ask nodes who they are, and remember those that say it."""
        self._asked |= set(nodes)
        request = Request(HELLO, server_round)
        content = RecordDict({SECURE: request.record()})
        group = str(server_round)
        messages = [Message(content, n, "train", group_id=group) for n in nodes]
        exchange = Exchange(self.grid, deadline, 1.0, order=lambda n: (n, ""))
        expected: dict[str, str | int] = {
            "job": self.run,
            "round": server_round,
            "stage": HELLO,
        }
        phase = exchange(messages, lambda *_: None)
        for reply in phase.replies:
            try:
                if reply.has_error():
                    continue  # it will not be able to train either, and be told then
                data = frame_of(reply.content)
                frame = open_frame(data, self.roster, expected, 0)
                self.bind(reply.metadata.src_node_id, frame.member)
            except ProtocolError:
                continue  # it is not bound, so nothing of it is taken
            if frame.member.role == DECRYPTOR:
                self.decryptors.add(reply.metadata.src_node_id)
        return phase
