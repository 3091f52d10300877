"""Who is in the federation, from the server's view: roster, decryptors, one key a node.

In deployment the roster is the operator's file (:func:`.keys.server_roster`); in a
simulation the server makes all keys of the run (:mod:`.automatic`).
"""

from __future__ import annotations

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
        Nodes that decrypt and are never asked to train.
    """

    job: Job
    run: str
    grid: Grid
    roster: Roster
    simulated: bool
    decryptors: set[int] = field(default_factory=set)
    _names: dict[int, str] = field(default_factory=dict)
    _nodes: dict[str, int] = field(default_factory=dict)

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
        name = self._names.setdefault(node, member.name)
        last = self._nodes.setdefault(member.name, node)
        away = last != node and last not in self.grid.get_node_ids()
        if name != member.name or (last != node and not away):
            raise ProtocolError("unknown-node", "the key belongs to another node")
        self._nodes[member.name] = node

    def find_decryptors(self, server_round: int) -> Phase | None:
        """Ask the nodes that are not known yet who they are; None if all are."""
        unknown = [n for n in self.grid.get_node_ids() if n not in self._names]
        if not unknown:
            return None
        request = Request(HELLO, server_round)
        content = RecordDict({SECURE: request.record()})
        group = str(server_round)
        messages = [Message(content, n, "train", group_id=group) for n in unknown]
        deadline = self.job.round.deadline
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
                continue
            if frame.member.role == DECRYPTOR:
                self.decryptors.add(reply.metadata.src_node_id)
        if not self.decryptors:
            raise ConfigError(
                "secure.key-holder = decryptor, and no node of the roster's role "
                "decryptor is connected."
            )
        return phase
