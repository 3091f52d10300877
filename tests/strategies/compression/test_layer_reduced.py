"""Inside a secure sum: nodes hand on values, one mean of them comes back."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from strategies.compression.layer import Compression
from strategies.update import with_delta
from tests.strategies.compression.rounds import SIZE, app, made, start_model, target
from tests.support.federation import config, grid_of, weights
from truststram.errors import ProtocolError


def summed(layer, grid, number, arrays):
    """One round as inside a secure sum: its server half sees one mean of the values."""
    messages = list(layer.configure_train(number, arrays, config(), grid))
    replies = grid.send_and_receive(messages)
    vectors = [r.content["update"]["delta"].numpy() for r in replies]
    expected = [((layer.reduced_size,), np.float32)] * len(messages)
    assert [(v.shape, v.dtype) for v in vectors] == expected
    numbers = RecordDict({"metrics": MetricRecord({"num-examples": len(vectors)})})
    mean = np.mean(vectors, axis=0).astype(np.float32)
    replies[0].content = with_delta(numbers, mean)
    return layer.aggregate_train(number, replies[:1])[0]


class TestReduced:
    """Inside a secure sum: values at public places in, one mean of them back."""

    def test_mods_hand_on_k_values_and_the_layer_expands_their_mean(self):
        layer, _ = made(codec="randk", ratio=0.1, reduced=True, error_feedback=False)
        base = start_model()
        arrays = summed(layer, grid_of(app(), 3), 1, base)
        assert layer.reduced_size == round(0.1 * SIZE)
        moved = weights(arrays) - weights(base)
        whole = np.mean([target(p) for p in range(3)], axis=0)
        sent = moved != 0
        assert sent.sum() == layer.reduced_size
        np.testing.assert_allclose(moved[sent], whole[sent], rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("codec", ["topk-shared", "randk"])
    def test_with_feedback_everything_is_sent_in_time(self, codec):
        layer, _ = made(codec=codec, ratio=0.2, reduced=True)
        grid, base = grid_of(app(), 2), start_model()
        arrays = base
        for number in range(1, 31):
            arrays = summed(layer, grid, number, arrays)
        moved = (weights(arrays) - weights(base)) / 30
        whole = np.mean([target(p) for p in range(2)], axis=0)
        assert np.linalg.norm(moved - whole) < 0.4 * np.linalg.norm(whole)

    def test_a_mean_of_another_length_is_an_error(self):
        layer, _ = made(codec="randk", ratio=0.1, reduced=True)
        grid = grid_of(app(), 2)
        messages = list(layer.configure_train(1, start_model(), config(), grid))
        [reply, _] = grid.send_and_receive(messages)
        reply.content = with_delta(reply.content, np.zeros(SIZE, np.float32))
        with pytest.raises(ProtocolError, match="shape"):
            layer.aggregate_train(1, [reply])

    def test_only_linear_codecs_can_be_summed(self):
        for codec in ("q8", "topk", "topk-q8", "eden-1", "eden-2", "adaptive", "none"):
            with pytest.raises(ValueError, match="reduced"):
                Compression(FedAvg(), codec=codec, reduced=True)

    def test_every_node_has_the_same_places(self):
        layer, _ = made(codec="randk", ratio=0.1, reduced=True)
        grid = grid_of(app(amount=lambda p: np.arange(SIZE, dtype=np.float32)), 4)
        messages = list(layer.configure_train(1, start_model(), config(), grid))
        found = {
            r.content["update"]["delta"].data for r in grid.send_and_receive(messages)
        }
        assert len(found) == 1
