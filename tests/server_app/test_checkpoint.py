"""A record is whole or absent, and damage is found."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvgM

from server_app import checkpoint, state
from server_app.checkpoint import RoundRecord
from tests.support.federation import model
from truststram.errors import CheckpointError
from truststram.job import Job
from truststram.records import pack
from truststram.techniques import Guard, ServerSGD, WeightedMean


def record(number, value=1.0, **more):
    return RoundRecord(number, model(value), Job().config(), **more)


def ignore(name):
    raise AssertionError(f"{name} is damaged")


def test_a_record_reads_back_exactly(tmp_path):
    arrays = ArrayRecord(
        {
            "z": pack(np.float32([[1.5, -0.0], [np.pi, 3e-39]])),
            "a": pack(np.array(7)),
            "half": pack(np.float16([1, 2])),
            "empty": pack(np.zeros((0, 3), np.float32)),
        }
    )
    layers = [
        {"name": "X", "state": {"m": {"w": np.arange(3.0)}, "n": None, "l": [1, "a"]}}
    ]
    written = RoundRecord(
        7, arrays, Job().config(), layers, {"round": 7}, {"round": 2}, failed=1
    )
    checkpoint.write(tmp_path, written)
    read = checkpoint.latest(tmp_path, ignore)
    assert list(read.arrays) == ["z", "a", "half", "empty"]
    assert all(read.arrays[k].data == arrays[k].data for k in arrays)
    np.testing.assert_array_equal(read.layers[0]["state"]["m"]["w"], np.arange(3.0))
    assert read.layers[0]["state"]["l"] == [1, "a"]
    assert (read.round, read.failed, read.best) == (7, 1, {"round": 2})
    assert read.job == Job().config()


def test_the_last_two_records_are_kept(tmp_path):
    for number in range(5):
        checkpoint.write(tmp_path, record(number))
    assert sorted(p.name[:12] for p in tmp_path.iterdir()) == [
        "round-000003",
        "round-000004",
    ]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_record_is_named_and_the_one_before_is_used(tmp_path, damage):
    checkpoint.write(tmp_path, record(1, 1.0))
    last = checkpoint.write(tmp_path, record(2, 2.0))
    data = bytearray(last.read_bytes())
    if damage == "truncate":
        data = data[:-10]
    elif damage == "flip":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray()
    last.write_bytes(data)
    damaged = []
    found = checkpoint.latest(tmp_path, damaged.append)
    assert found.round == 1
    assert damaged == [last.name]


def test_no_record_is_none(tmp_path):
    assert checkpoint.latest(tmp_path, ignore) is None
    (tmp_path / "round-000001-0000.safetensors").write_bytes(
        b"x"
    )  # not a record's name
    assert checkpoint.latest(tmp_path, ignore) is None


def test_a_round_that_ran_again_replaces_its_record(tmp_path):
    import os

    old = checkpoint.write(tmp_path, record(3, 1.0))
    os.utime(old, ns=(1, 1))
    checkpoint.write(tmp_path, record(3, 9.0))
    assert checkpoint.latest(tmp_path, ignore).arrays["w"].numpy()[0, 0] == 9.0


def test_a_full_disk_is_told_and_leaves_the_record_before(tmp_path, monkeypatch):
    checkpoint.write(tmp_path, record(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpoint.write(tmp_path, record(2))
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    assert checkpoint.latest(tmp_path, ignore).round == 1


def test_models_are_plain_safetensors(tmp_path):
    from safetensors.numpy import load_file

    checkpoint.save_model(tmp_path / "m.safetensors", model(3.0))
    assert (load_file(tmp_path / "m.safetensors")["w"] == 3).all()
    again = checkpoint.load_model(tmp_path / "m.safetensors")
    assert again["w"].data == model(3.0)["w"].data


@pytest.mark.parametrize(
    "make",
    [
        lambda: Guard(WeightedMean(ServerSGD(momentum=0.5))),
        lambda: Guard(WeightedMean(FedAdam(eta=0.1))),
        lambda: Guard(WeightedMean(FedAvgM(server_momentum=0.5))),
    ],
    ids=["sgd", "FedAdam", "FedAvgM"],
)
def test_strategy_state_survives_a_record(tmp_path, make):
    """Three rounds at once equal two rounds, a record, and one round."""
    from tests.strategies.mean.test_layer import aggregate, contents

    whole, _ = aggregate(make(), contents("delta"), rounds=3)

    first, second = make(), make()
    arrays, _ = aggregate(first, contents("delta"), rounds=2)
    saved = RoundRecord(2, arrays, Job().config(), state.snapshot(first))
    checkpoint.write(tmp_path, saved)
    read = checkpoint.latest(tmp_path, ignore)
    state.restore(second, read.layers)
    from flwr.app import Message

    from tests.support.federation import adding_app, config, grid_of, weights

    grid = grid_of(adding_app(lambda p, r: 0.0), 6)
    messages = list(second.configure_train(3, read.arrays, config(), grid))
    messages.sort(key=lambda m: m.metadata.dst_node_id)
    replies = [
        Message(c, reply_to=m) for c, m in zip(contents("delta"), messages, strict=True)
    ]
    last, _ = second.aggregate_train(3, replies)
    np.testing.assert_array_equal(weights(last), weights(whole))


def test_state_of_another_stack_is_refused():
    saved = state.snapshot(Guard(WeightedMean(FedAdam())))
    with pytest.raises(CheckpointError, match="FedAdam"):
        state.restore(Guard(WeightedMean()), saved)
