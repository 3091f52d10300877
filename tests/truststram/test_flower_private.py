"""Flower's private API that we use: if one of these fails, Flower has changed.

Mend ``truststram/_flower.py``; nothing else touches it.
"""

from __future__ import annotations

import re
from pathlib import Path

import flwr
import pytest
from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from truststram import _flower
from truststram._start import sitecustomize
from truststram.engine import LocalGrid


def test_the_tested_version_is_installed():
    assert flwr.__version__.startswith("1.41."), "check truststram/_flower.py"


def test_become_task_is_what_message_needs():
    TaskIdentity._run_id = None
    with pytest.raises(RuntimeError, match="run_id is not set"):
        Message(RecordDict(), 5, MessageType.TRAIN)
    _flower.become_task(42, 7)
    message = Message(RecordDict(), 5, MessageType.TRAIN)
    assert (message.metadata.run_id, message.metadata.src_node_id) == (42, 7)
    assert _flower.run_id() == 42


def test_message_id_and_group_reach_the_reply():
    message = Message(RecordDict(), 5, MessageType.TRAIN)
    message_id = _flower.set_message_id(message)
    _flower.set_group(message, "3")
    reply = Message(RecordDict(), reply_to=message)
    assert message.metadata.message_id == message_id
    assert reply.metadata.reply_to_message_id == message_id
    assert reply.metadata.group_id == "3"
    assert reply.metadata.src_node_id == 5


def test_metadata_can_be_reused_for_a_new_content():
    message = Message(RecordDict(), 5, MessageType.TRAIN)
    copy = Message(content=RecordDict(), metadata=message.metadata)
    assert copy.metadata.dst_node_id == 5


def test_make_context_is_a_flower_context():
    context = _flower.make_context(5, {"partition-id": 1}, {"train.rounds": 2})
    assert context.node_id == 5
    assert context.run_config == {"train.rounds": 2}
    assert len(context.state) == 0


def test_flowers_simulation_imports_tensorflow_for_one_function():
    """That is why ``truststram/_start`` replaces this module."""
    file = sitecustomize.NAME.replace(".", "/") + ".py"  # importing it takes seconds
    source = (Path(flwr.__file__).parent.parent / file).read_text()
    assert "    import tensorflow as TF\n" in source
    assert re.findall(r"^(?:def|class) (\w+)", source, re.M) == ["enable_tf_gpu_growth"]


def test_flowers_simulation_grid_is_recognised_by_name():
    from flwr.superlink.grid.inmemory_grid import InMemoryGrid

    grid = InMemoryGrid.__new__(InMemoryGrid)
    assert _flower.is_simulation(grid)
    assert not _flower.is_simulation(LocalGrid.__new__(LocalGrid))


def test_array_header_is_the_one_flower_writes():
    import numpy as np
    from flwr.app import Array

    data = Array(np.zeros(3, np.float32)).data
    assert data.startswith(b"\x93NUMPY\x01\x00")
    assert len(data) == 128 + 12
