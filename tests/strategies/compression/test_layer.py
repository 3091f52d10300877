"""Server half: what arrives is what the codec says, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.serverapp.strategy import FedAvg

from strategies.compression.codecs import make_codec
from strategies.compression.layer import Compression
from strategies.compression.messages import FRAME, RECORD, Ask
from strategies.compression.mod import compression_mod
from strategies.guard.layer import Guard
from strategies.mean.layer import WeightedMean
from strategies.mechanisms.layer import CentralDP
from tests.strategies.compression.rounds import (
    SIZE,
    app,
    codes,
    made,
    round_of,
    start_model,
    target,
)
from tests.support.federation import config, grid_of, weights
from truststram.job import Job

CODECS = {
    "q8": ("q8", 0.04),
    "topk": ("topk", 1.0),
    "topk-q8": ("topk-q8", 1.0),
    "topk-shared": ("topk-shared", 1.0),
    "randk": ("randk", 1.0),
    "eden-1": ("eden-1", 1.0),
    "eden-2": ("eden-2", 0.4),
}


@pytest.mark.parametrize("inner", [lambda: Guard(WeightedMean()), FedAvg])
@pytest.mark.parametrize("codec", CODECS)
def test_what_arrives_is_what_the_codec_says(codec, inner):
    name, error = CODECS[codec]
    layer, events = made(inner(), codec=name, ratio=0.1)
    base = start_model()
    arrays = round_of(layer, grid_of(app(), 3), 1, base)
    moved = weights(arrays) - weights(base)
    mean = np.mean([target(p) for p in range(3)], axis=0)
    assert np.linalg.norm(moved - mean) <= error * np.linalg.norm(mean)
    assert np.linalg.norm(moved) > 0
    assert codes(events) == []
    [sizes] = [data for kind, data in events if kind == "compressed"]
    predicted = make_codec(name, 0.1).predicted_bytes(SIZE)
    for count in sizes["nodes"].values():  # metrics and names beside the frame
        assert predicted * 0.85 < count < predicted * 1.15 + 120
    assert sizes["saved_up"] > 3 * 0.5 * 4 * SIZE


@pytest.mark.parametrize("codec", ["topk", "topk-q8", "topk-shared", "randk"])
def test_feedback_sends_everything_in_time(codec):
    """Clients that always send the same vector: the mean step becomes that vector."""
    moved = {}
    for feedback in (True, False):
        layer, _ = made(codec=codec, ratio=0.1, error_feedback=feedback)
        grid, arrays = grid_of(app(), 2), start_model()
        for number in range(1, 26):
            arrays = round_of(layer, grid, number, arrays)
        moved[feedback] = (weights(arrays) - weights(start_model())) / 25
    mean = np.mean([target(p) for p in range(2)], axis=0)
    errors = {
        k: np.linalg.norm(v - mean) / np.linalg.norm(mean) for k, v in moved.items()
    }
    assert errors[True] < 0.65
    assert errors[False] > 1.2 * errors[True]


def test_unbiased_codecs_keep_nothing_on_the_node():
    layer, _ = made(codec="q8")
    grid = grid_of(app(), 2)
    round_of(layer, grid, 1, start_model())
    assert all(not grid.context(n).state for n in grid.get_node_ids())


def test_a_repeated_round_is_answered_with_the_same_bytes_without_training():
    layer, _ = made(codec="topk-q8")
    calls = []

    def counted(partition):
        calls.append(partition)
        return target(partition)

    grid = grid_of(app(amount=counted), 2)
    replies = []
    for _ in range(2):
        messages = list(layer.configure_train(1, start_model(), config(), grid))
        found = grid.send_and_receive(messages)
        replies.append(sorted(found, key=lambda r: r.metadata.src_node_id))
        layer.aggregate_train(1, [])
    one, two = ([dict(r.content) for r in found] for found in replies)
    assert [c[FRAME][FRAME].data for c in one] == [c[FRAME][FRAME].data for c in two]
    assert [c["metrics"] for c in one] == [c["metrics"] for c in two]
    assert [c[RECORD] for c in one] == [c[RECORD] for c in two]
    assert len(calls) == 2


@pytest.mark.parametrize("downlink", ["none", "q8"])
def test_stock_clients_and_ours_together(downlink):
    """Clients without the mod get whole models and send whole models."""

    def sometimes(message, context, call_next):
        if context.node_config["partition-id"] == 1:
            content = RecordDict(
                {k: v for k, v in message.content.items() if k != RECORD}
            )
            assert "arrays" in content
            message.content = content
            return call_next(message, context)
        return compression_mod(message, context, call_next)

    layer, events = made(codec="q8", downlink=downlink)
    grid, base = grid_of(app([sometimes]), 3), start_model()
    arrays = base
    for number in (1, 2, 3):
        arrays = round_of(layer, grid, number, arrays)
    assert codes(events) == []
    moved = (weights(arrays) - weights(base)) / 3
    mean = np.mean([target(p) for p in range(3)], axis=0)
    assert np.linalg.norm(moved - mean) < 0.05 * np.linalg.norm(mean)


def test_a_lost_residual_is_told():
    layer, events = made(codec="topk-q8")
    grid, arrays = grid_of(app(), 3), start_model()
    arrays = round_of(layer, grid, 1, arrays)
    assert "residual-lost" not in dict(events)
    grid.context(grid.get_node_ids()[0]).state.clear()
    round_of(layer, grid, 2, arrays)
    [told] = [data for kind, data in events if kind == "residual-lost"]
    assert told["node"] == layer.name_of(grid.get_node_ids()[0])


@pytest.mark.parametrize("codec", ["topk-q8", "eden-1"])
def test_noise_by_the_server_covers_what_was_decoded(codec):
    """However long decoded updates are, what they add to the noise is the clip."""
    keys = {"privacy.mechanism": "gaussian", "privacy.insecure": True}
    keys |= {"privacy.clip": 0.5, "train.rounds": 2, "server.lr": 1.0}
    released = []
    for size in (0.0, 100.0):
        private = Guard(CentralDP(Job.of(keys)), static=True)
        layer, events = made(private, codec=codec)
        grid = grid_of(app(amount=lambda p, size=size: size * target(p)), 3)
        arrays = round_of(layer, grid, 1, start_model())
        arrays = round_of(layer, grid, 2, arrays)  # with feedback of the first
        released.append(weights(arrays))
        assert codes(events) == []
    # The noise of a seed is the same: the rest is the mean of three clipped updates.
    moved = np.linalg.norm(released[1] - released[0])
    assert 0 < moved <= 2 * 0.5 * 1.001


def test_its_asks_say_nothing_but_what_is_needed():
    layer, _ = made(codec="q8")
    messages = layer.configure_train(1, start_model(), config(), grid_of(app(), 2))
    ask = Ask.of(next(iter(messages)).content)
    assert (ask.codec, ask.round, ask.feedback, ask.reduced) == ("q8", 1, False, False)
    assert (ask.selection, ask.model, ask.versions) == (b"", b"", ())


def test_a_ratio_may_be_an_integer():
    """Nodes read it from the wire, where types count."""
    layer, events = made(codec="topk", ratio=1)
    base = start_model()
    arrays = round_of(layer, grid_of(app(), 2), 1, base)
    assert codes(events) == []
    mean = np.mean([target(p) for p in range(2)], axis=0)
    moved = weights(arrays) - weights(base)
    assert np.linalg.norm(moved - mean) < 0.01 * np.linalg.norm(mean)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="codec"):
        Compression(FedAvg(), codec="zip")
    with pytest.raises(ValueError, match="downlink"):
        Compression(FedAvg(), downlink="topk")
    with pytest.raises(ValueError, match="ratio"):
        Compression(FedAvg(), codec="topk", ratio=0.0)
