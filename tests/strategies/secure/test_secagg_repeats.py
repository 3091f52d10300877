"""Rounds of secure aggregation that fail: who may repeat them, and with whom."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from strategies.secure import secagg_client
from strategies.secure.graph import MALICIOUS
from strategies.secure.secagg_layer import SecAggSum
from strategies.server_sgd import ServerSGD
from tests.strategies.secure.masked import (
    CLOSE,
    THREATS,
    federation,
)
from tests.support.federation import model


@THREATS
@pytest.mark.parametrize("stage", ["keys", "shares", "mask", "unmask"])
def test_too_few_are_left_and_the_model_is_kept(threat, stage):
    f = federation(threat=threat, gone={stage: range(5)})
    assert f.round() == (None, None)
    [refused] = f.of("secure-refused")
    assert refused["code"] in ("cohort-size", "too-few-left", "too-few-shares")
    f.gone = {}
    found, _ = f.round()  # the same cohort may try again
    np.testing.assert_allclose(found, f.expected(), **CLOSE)


@THREATS
def test_no_two_sums_of_a_model_differ_by_a_node(threat):
    """As after a restart of the server, or as a server would that subtracts."""
    f = federation(threat=threat)
    first, _ = f.round()
    f.number -= 1
    f.gone = {"mask": [3]}
    assert f.round() == (None, None)
    assert "another sum with some of these nodes" in f.of("reply-dropped")[-1]["detail"]
    assert "run.seed" in f.of("reply-dropped")[-1]["detail"]
    f.gone = {"keys": [3]}  # later, and never known to the others in this round
    assert f.round() == (None, None)
    f.number, f.gone = 0, {}
    again, _ = f.round()  # the same nodes: they repeat what they have said
    np.testing.assert_array_equal(again, first)
    f.arrays, f.gone = model(0.7), {"mask": [3]}
    found, _ = f.round()
    np.testing.assert_allclose(found, 0.2 + f.expected([3]), **CLOSE)


@pytest.mark.parametrize("stage", ["mask", "unmask"])
def test_a_round_whose_sum_was_not_opened_is_repeated_with_others(stage):
    f = federation(gone={stage: range(5)})
    assert f.round() == (None, None)
    f.gone = {"keys": [6]}  # the same model, another cohort
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected([6]), **CLOSE)


def test_samples_of_the_nodes_follow_a_round_that_failed():
    f = federation(gone={"keys": [0, 1], "unmask": range(7)})
    assert f.round() == (None, None)
    f.gone = {"keys": [5, 6], "unmask": range(7)}
    assert f.round() == (None, None)
    f.gone = {"keys": [2, 3]}
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected([2, 3]), **CLOSE)


def test_towards_a_malicious_server_quorums_of_a_repeated_round_must_meet():
    f = federation(threat=MALICIOUS, gone={"mask": range(3)})
    assert f.round() == (None, None)  # four have masked, five must consent
    f.gone = {"keys": [5, 6]}
    assert f.round() == (None, None)
    assert "masked an update" in f.of("reply-dropped")[-1]["detail"]
    f.gone = {"keys": [6]}
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected([6]), **CLOSE)


def test_towards_a_malicious_server_consent_binds():
    f = federation(threat=MALICIOUS, gone={"unmask": range(7)})
    assert f.round() == (None, None)  # all have consented: for them it may be open
    f.gone = {"keys": [6]}
    assert f.round() == (None, None)
    f.gone = {}
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected(), **CLOSE)


@pytest.mark.parametrize("stays", [True, False])
def test_who_dealt_wrong_shares_is_left_out_from_then_on(monkeypatch, stays):
    f, at = federation(gone={"mask": [] if stays else [2]}), threading.local()
    right = secagg_client.share

    def asked(stage, node, message):
        at.node = node
        return message

    def dealt(secret, *sizes):
        return right(secret ^ (at.node == 2), *sizes)

    f.ask = asked
    with monkeypatch.context() as patch:
        patch.setattr(secagg_client, "share", dealt)
        assert f.round() == (None, None)
        assert f.of("secure-refused")[0]["code"] == "dealer"
        f.gone = {}
        if stays:  # the others opened a sum with it, and open no other of this model
            assert f.round() == (None, None)
            f.arrays = model(0.7)
        found, _ = f.round()
    assert "dealer" in f.codes()
    step = 0.2 if stays else 0.0
    np.testing.assert_allclose(found, step + f.expected([2]), **CLOSE)
    again = SecAggSum(f.job, ServerSGD())
    again.load_state(f.layer.state())
    assert again.state()["cheats"] == f.layer.state()["cheats"] != []
