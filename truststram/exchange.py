"""One phase of a round: send messages, collect replies, stop at quorum or deadline.

Flower's ``send_and_receive`` polls every three seconds and has only a timeout. Here a
phase ends when all replied, when a quorum replied, or at the deadline, whichever comes
first. What comes later is counted and thrown away: a reply is used in its own phase or
never.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from .records import content_bytes

__all__ = ["RUN", "Exchange", "Phase"]

# Where a message's config has the name of the run, which a resume keeps.
RUN = "run-name"

POLL_SECONDS = 0.2
# Unanswered messages of earlier phases that are still asked for, to count late replies.
MAX_OVERDUE = 10_000


@dataclass
class Phase:
    """What came back in one phase.

    Attributes
    ----------
    replies : list of Message
        In the order of the nodes' names; error replies included.
    lost : int
        Messages without any reply when the phase ended.
    late : int
        Replies to earlier phases that arrived during this one.
    bytes_up, bytes_down : int
        Payload received (late replies included) and sent.
    """

    replies: list[Message] = field(default_factory=list)
    lost: int = 0
    late: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class Exchange:
    """Sends the messages of a phase and collects the replies.

    Parameters
    ----------
    grid : Grid
    deadline : float
        Seconds after which a phase ends.
    quorum : float
        Fraction of the messages whose replies end a phase early, in (0, 1].
    order : callable
        Sort key of a node id.
    clock, sleep : callables
        Monotonic seconds; for tests.

    Attributes
    ----------
    seconds : dict
        Node id -> seconds from the start of this phase, or the last one, until its
        reply was there.
    """

    def __init__(
        self,
        grid: Grid,
        deadline: float,
        quorum: float,
        order: Callable[[int], tuple[int, str]],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._grid, self._deadline, self._quorum = grid, deadline, quorum
        self._order, self._clock, self._sleep = order, clock, sleep
        self._overdue: set[str] = set()
        self.seconds: dict[int, float] = {}

    def __call__(
        self, messages: Sequence[Message], progress: Callable[[int, int], object]
    ) -> Phase:
        """Run one phase; ``progress(replies, expected)`` is told of every arrival."""
        phase = Phase()
        self.seconds.clear()
        if not messages:
            return phase
        phase.bytes_down = _payload(messages)
        start = self._clock()
        pushed = [i for i in self._grid.push_messages(messages) if i is not None]
        pending = set(pushed)
        enough = math.ceil(self._quorum * len(messages))
        while pending and len(phase.replies) < enough:
            if self._clock() - start >= self._deadline:
                break
            # In the order sent, which is the order of names: an engine that works
            # through them one by one then does so in every run alike.
            arrived = self._pull([i for i in pushed if i in pending], phase)
            for reply in arrived:
                pending.discard(reply.metadata.reply_to_message_id)
                self.seconds[reply.metadata.src_node_id] = self._clock() - start
            phase.replies += arrived
            if arrived:
                progress(len(phase.replies), len(messages))
            elif pending:
                self._sleep(POLL_SECONDS)
        phase.lost = len(messages) - len(phase.replies)
        if len(self._overdue) < MAX_OVERDUE:
            self._overdue |= pending
        phase.replies.sort(key=lambda m: self._order(m.metadata.src_node_id))
        return phase

    def _pull(self, pending: list[str], phase: Phase) -> list[Message]:
        """Return new replies of this phase; count those of earlier ones."""
        current = []
        for reply in self._grid.pull_messages([*pending, *self._overdue]):
            answered = reply.metadata.reply_to_message_id
            if reply.has_content():
                phase.bytes_up += content_bytes(reply.content)
            if answered in self._overdue:
                self._overdue.discard(answered)
                phase.late += reply.has_content()
            else:
                current.append(reply)
        return current


def _payload(messages: Sequence[Message]) -> int:
    """Return the bytes of all messages; a content shared by many is measured once."""
    sizes: dict[int, int] = {}
    total = 0
    for message in messages:
        content = message.content
        if id(content) not in sizes:
            sizes[id(content)] = content_bytes(content)
        total += sizes[id(content)]
    return total
