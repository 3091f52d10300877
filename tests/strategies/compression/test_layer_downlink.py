"""The way down: nodes train from M_t or are told, whatever they lost, and restarts."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.compression.messages import STEPS, Ask
from strategies.compression.mod import compression_mod
from strategies.stores import ContextStore
from tests.strategies.compression.rounds import (
    app,
    codes,
    made,
    round_of,
    start_model,
    target,
)
from tests.support.federation import config, grid_of, weights


def test_a_node_that_says_it_misses_the_model_is_left_out_once():
    layer, events = made(codec="topk-q8", downlink="q8")
    grid, arrays = grid_of(app(), 3), start_model()
    arrays = round_of(layer, grid, 1, arrays)
    node = grid.get_node_ids()[1]
    state = grid.context(node).state
    for name in [n for n in state if n.endswith("model")]:
        del state[name]
    arrays = round_of(layer, grid, 2, arrays)
    assert codes(events) == ["model-missing"]
    messages = list(layer.configure_train(3, arrays, config(), grid))
    whole = {m.metadata.dst_node_id for m in messages if "arrays" in m.content}
    assert whole == {node}
    replies = grid.send_and_receive(messages)
    layer.aggregate_train(3, replies)
    assert codes(events) == ["model-missing"]


@pytest.mark.parametrize("secret", [False, True])
def test_a_node_with_other_arithmetic_is_told_and_gets_whole_models(secret):
    """Its float32 sums are off: every model that it makes itself is another one."""

    def elsewhere(message, context, call_next):
        if STEPS in message.content and context.node_config["partition-id"] == 1:
            store = ContextStore(context, Ask.of(message.content).job)
            entry = store.load("model")
            values = np.frombuffer(entry.parts[0], np.float32) * np.float32(1.001)
            store.save("model", entry.about, [values.view(np.uint8).data])
        return compression_mod(message, context, call_next)

    layer, events = made(codec="q8", downlink="q8")
    layer.inner.secret_cohort = secret
    grid, arrays, whole = grid_of(app([elsewhere]), 3), start_model(), []
    node = grid.get_node_ids()[1]
    for number in range(1, 7):
        messages = list(layer.configure_train(number, arrays, config(), grid))
        for message in messages:
            if message.metadata.dst_node_id == node and "arrays" in message.content:
                whole.append(number)
        replies = grid.send_and_receive(messages)
        arrays = layer.aggregate_train(number, replies)[0]
    assert whole == [1, 3, 5, 6]
    assert codes(events) == ["model-missing"] * 2
    told = [data for kind, data in events if kind == "downlink-off"]
    assert told == ([] if secret else [{"round": 4, "node": layer.name_of(node)}])


def deployed(folder, nodes=3):
    """A grid of nodes that have just started: nothing but their folders is left."""
    grid = grid_of(app(), nodes)
    for node in grid.get_node_ids():
        config = grid.context(node).node_config
        config["state-path"] = str(folder)
        config.pop("simulated")
    return grid


def test_a_deployed_node_that_restarts_goes_on_from_its_folder(tmp_path):
    found = []
    for restarts in (False, True):
        layer, events = made(codec="topk-q8", downlink="q8")
        folder, arrays = tmp_path / str(restarts), start_model()
        grid = deployed(folder)
        for number in range(1, 5):
            arrays = round_of(layer, grid, number, arrays)
            grid = deployed(folder) if restarts else grid
        assert codes(events) == []
        assert "residual-lost" not in dict(events)
        assert not any(len(grid.context(n).state) for n in grid.get_node_ids())
        found.append(weights(arrays))
    np.testing.assert_array_equal(*found)


def test_a_damaged_folder_is_told_and_the_run_goes_on(tmp_path):
    layer, events = made(codec="topk-q8", downlink="q8")
    arrays = round_of(layer, deployed(tmp_path), 1, start_model())
    for path in tmp_path.glob("*/*/*"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    arrays = round_of(layer, deployed(tmp_path), 2, arrays)
    assert codes(events) == ["model-missing"] * 3
    round_of(layer, deployed(tmp_path), 3, arrays)
    assert codes(events) == ["model-missing"] * 3
    lost = [data for kind, data in events if kind == "residual-lost"]
    assert [data["damaged"] for data in lost] == [True] * 3


def test_the_model_is_x_plus_the_update_and_nodes_train_from_m():
    """The inner layers see M_t, the server keeps x_t."""
    layer, _ = made(codec="none", downlink="eden-2")
    grid, x = grid_of(app(), 2), start_model()
    mean = np.mean([target(p) for p in range(2)], axis=0)
    for number in range(1, 6):
        before = weights(x)
        x = round_of(layer, grid, number, x)
        np.testing.assert_allclose(weights(x) - before, mean, atol=1e-5)
        seen = weights(layer.model.arrays)
        assert (np.abs(seen - before).max() > 1e-3) == (number > 1)


def test_evaluation_goes_down_the_same_chain():
    layer, events = made(codec="none", downlink="q8")
    grid, x = grid_of(app(), 3), start_model()
    x = round_of(layer, grid, 1, x)
    messages = list(layer.configure_evaluate(1, x, config(), grid))
    assert all(STEPS in m.content and "arrays" not in m.content for m in messages)
    metrics = layer.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert metrics["loss"] == pytest.approx(weights(x).mean(), abs=0.02)
    # Training starts from what was evaluated: nothing is sent twice.
    messages = list(layer.configure_train(2, x, config(), grid))
    assert all(len(m.content[STEPS]) == 0 for m in messages)
    layer.aggregate_train(2, grid.send_and_receive(messages))
    assert codes(events) == []


def test_messages_share_contents():
    """One content for all nodes that get the same: not a copy of the model for each."""
    layer, _ = made(codec="topk-q8", downlink="q8")
    grid = grid_of(app(), 5)
    messages = list(layer.configure_train(1, start_model(), config(), grid))
    assert len({id(m.content) for m in messages}) == 1
