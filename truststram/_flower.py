"""The few things that Flower 1.41 offers only privately, all in one place.

``tests/truststram/test_flower_private.py`` checks each of them and fails loudly when
Flower changes.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "SERVER_NODE_ID",
    "become_task",
    "is_simulation",
    "make_context",
    "run_id",
    "set_group",
    "set_message_id",
    "set_sender",
    "with_content",
]

SERVER_NODE_ID = 1
_IDS = itertools.count()


def become_task(run: int, node: int = SERVER_NODE_ID) -> None:
    """Give this process the identity that constructing a ``Message`` requires."""
    TaskIdentity.task_id = run
    TaskIdentity.run_id = run
    TaskIdentity.node_id = node


def run_id() -> int:
    """Return Flower's id of the run that this process works for."""
    return int(TaskIdentity.run_id)


def set_message_id(message: Message, message_id: str | None = None) -> str:
    """Give ``message`` an id, as a SuperLink does when it stores one."""
    message_id = message_id or f"local-{next(_IDS)}"
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


def set_group(message: Message, group: str) -> None:
    """Set the group id (here: the round), which every reply inherits."""
    message.metadata.__dict__["_group_id"] = group


def set_sender(reply: Message, node: int) -> None:
    """Say whose reply this is; Flower's own errors for a node say the SuperLink."""
    reply.metadata.__dict__["_src_node_id"] = node


def with_content(like: Message, content: RecordDict) -> Message:
    """Return a message with the metadata of ``like`` and another content."""
    return Message(content=content, metadata=like.metadata)  # type: ignore[call-overload, no-any-return]  # Flower's internal signature


def make_context(
    node_id: int,
    node_config: Mapping[str, bool | int | float | str],
    run_config: Mapping[str, bool | int | float | str],
) -> Context:
    """Return a fresh Context with empty state."""
    return Context(run_id(), node_id, dict(node_config), RecordDict(), dict(run_config))


def is_simulation(grid: Grid) -> bool:
    """Return whether ``grid`` is Flower's own simulation (all nodes on one machine)."""
    # By name: importing the class would load Flower's SuperLink state machinery.
    return type(grid).__name__ == "InMemoryGrid"


def in_simulated_node() -> bool:
    """Return whether this process is a worker of Flower's simulation."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
