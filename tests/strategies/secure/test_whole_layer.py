"""Nodes with integers of their own under secure aggregation: exact sums, or none."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord

from strategies.secure.graph import MALICIOUS, SEMI_HONEST
from strategies.secure.integers import read_sums, with_integers
from strategies.secure.secagg_mod import secagg_mod
from strategies.secure.secagg_wire import Settings
from strategies.secure.whole import WholeNumbers
from strategies.server_sgd import ServerSGD
from tests.strategies.secure.masked import Federation, job_of
from truststram.errors import ConfigError

RUNS = ((5, 2), (4, 2**32))
THREATS = pytest.mark.parametrize("threat", [SEMI_HONEST, MALICIOUS])


class Taking(ServerSGD):
    """Keeps the sums, and moves the model by one."""

    integers = RUNS

    def aggregate_train(self, server_round, replies):
        [reply] = replies
        self.sums = read_sums(reply.content)
        self.clients = reply.content["metrics"]["num-examples"]
        return ArrayRecord(dict(self._before)), None

    def configure_train(self, server_round, arrays, config, grid):
        self._before = arrays
        return super().configure_train(server_round, arrays, config, grid)


class Integers(Federation):
    """Nodes that reply with integers; ``said`` may replace what a node replies."""

    def __init__(self, nodes=7, inner=Taking, **changes):
        super().__init__(nodes, inner=inner, **changes)
        rng = np.random.default_rng(3)
        self.values = [
            np.concatenate([rng.integers(0, 2, 5), rng.integers(0, 2**32, 4)])
            for _ in range(nodes)
        ]
        self.said = {}
        self.report = self._reported

    def _reported(self, node, reply):
        reply.content = self.said.get(node) or with_integers(self.values[node], RUNS)
        return reply

    def sum_without(self, *nodes):
        return sum(v for i, v in enumerate(self.values) if i not in nodes)


def federation(threat=SEMI_HONEST, **options):
    return Integers(**{"secure.threat": threat}, **options)


@THREATS
def test_the_strategy_inside_gets_the_exact_sums(threat):
    f = federation(threat)
    model, _ = f.round()
    assert model is not None
    np.testing.assert_array_equal(f.layer.inner.sums, f.sum_without())
    assert (f.layer.inner.sums.dtype, f.layer.inner.clients) == (np.int64, 7)
    [told] = f.of("secure-plan")
    assert (told["bits"], told["clip"], told["encrypted"]) == (32, None, 9)
    assert f.of("secure-sum") == [{"round": 1, "clients": 7, "clipped": 0.0}]


@THREATS
def test_sums_are_exact_when_nodes_drop_out(threat):
    gone = {"keys": [0], "mask": [1], "unmask": [2]}
    f = federation(threat, nodes=9, gone=gone)
    f.round()
    np.testing.assert_array_equal(f.layer.inner.sums, f.sum_without(0, 1))


def test_what_leaves_a_node_is_masked():
    f = federation()
    f.round()
    for node, values in enumerate(f.values):
        assert values.astype("<u8").tobytes() not in f.frames["mask", node]
        assert values[5:].astype("<u4").tobytes() not in f.frames["mask", node]


@pytest.mark.parametrize(
    "values",
    [np.r_[2, 0, 0, 0, 0, 0, 0, 0, 0], np.r_[[0] * 8, 2**32], np.r_[[0] * 8, -1]],
)
def test_a_node_whose_values_are_out_of_range_is_left_out(values):
    f = federation()
    f.said[3] = with_integers(values, RUNS)
    f.round()
    np.testing.assert_array_equal(f.layer.inner.sums, f.sum_without(3))
    [dropped] = f.of("reply-dropped")
    third = str(f.grid.get_node_ids()[3])
    assert (dropped["node"], dropped["code"]) == (third, "client-error")
    assert "cannot be encoded" in dropped["detail"]


def test_a_node_with_other_ranges_is_left_out():
    f = federation()
    f.said[3] = with_integers(f.values[3], ((5, 3), (4, 2**32)))
    f.round()
    np.testing.assert_array_equal(f.layer.inner.sums, f.sum_without(3))
    assert f.codes() == ["header"]


def test_a_node_with_an_update_is_left_out():
    f = federation()
    reported = f.report
    f.report = lambda node, reply: reply if node == 3 else reported(node, reply)
    f.round()
    np.testing.assert_array_equal(f.layer.inner.sums, f.sum_without(3))
    assert f.codes() == ["header"]


def test_integers_are_nothing_to_a_server_that_adds_updates():
    f = federation(inner=ServerSGD)
    assert f.round() == (None, None)
    assert f.codes() == ["header"] * 7


def test_a_lie_that_no_sum_can_have_refuses_the_round(monkeypatch):
    """A node that masks a value beyond its range is found out in the sum, if at all."""
    f = federation()
    f.values[3][0], f.values[4][0] = 1, 1
    encode = WholeNumbers.encode

    def lying(coder, x, rng=None):
        q = encode(coder, x, rng)
        if np.array_equal(x, f.values[3]):
            q[0] = 9
        return q

    monkeypatch.setattr(WholeNumbers, "encode", lying)
    assert f.round() == (None, None)
    assert [e["code"] for e in f.of("secure-refused")] == ["sum-range"]
    monkeypatch.undo()
    f.round()
    np.testing.assert_array_equal(f.layer.inner.sums, f.sum_without())


def test_integers_do_not_pass_a_job_that_promises_noise():
    job = job_of()
    whole = WholeNumbers(RUNS, 10)
    Settings(job, whole=whole)
    Settings(job, lambda n: None)
    with pytest.raises(ConfigError, match="noise is added to updates"):
        Settings(job, lambda n: None, whole)
    assert secagg_mod(job)
