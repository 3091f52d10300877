"""What every layer of the table must do, whatever it computes.

Later techniques join by being in ``strategies/stack.py``.
"""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from server_app.checkpoint import _packed, _unpacked
from strategies import stack
from strategies.server_sgd import ServerSGD
from strategies.update import Model, read_delta, with_delta
from tests.support.federation import (
    adding_app,
    config,
    grid_of,
    model,
    plus,
    reply_content,
    weights,
)
from truststram.job import Job

ROWS = [row for row in stack.LAYERS if row.wrap]
# Jobs with which a row of the table is enabled, where the defaults do not do.
JOBS = {
    "compression": {"compression.codec": "topk-shared", "compression.downlink": "q8"},
    "central-dp": {
        "privacy.mechanism": "gaussian",
        "privacy.epsilon": 20.0,
        "privacy.insecure": True,
        "train.rounds": 1,
        "server.lr": 1.0,
    },
    "secure": {"secure.scheme": "bfv"},
    "secagg": {"secure.scheme": "secagg"},
}
# Rows whose replies can only be made by their own mods.
SEALED = ("secure", "secagg")
INNER = {
    "our optimizer": lambda: stack.WeightedMean(ServerSGD()),
    "stock FedAvg": FedAvg,
    "stock FedAdam": lambda: FedAdam(eta=0.1),
}

pytestmark = [
    pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name),
    pytest.mark.parametrize("inner", INNER),
]


def made(row, inner):
    return row.wrap(Job.of(JOBS.get(row.name, {})), INNER[inner]())


class Nodes:
    """Nodes that reply what they are told to, sealed if the row's mod seals it."""

    def __init__(self, row, nodes=5):
        job = Job.of(JOBS.get(row.name, {}))
        self.sealed = row.name in SEALED
        app = ClientApp(mods=[row.mod(job)] if self.sealed else [])
        app.train()(lambda message, context: Message(self.said, reply_to=message))
        self.grid = grid_of(app, nodes)

    def reply(self, messages, said):
        if not self.sealed:
            return [Message(said, reply_to=m) for m in messages]
        self.said = said
        return self.grid.send_and_receive(messages)


def start(row, inner):
    layer, nodes = made(row, inner), Nodes(row)
    layer.emit = lambda kind, **data: None
    base = model(0.5)
    messages = list(layer.configure_train(1, base, config(), nodes.grid))
    return layer, base, messages, nodes


def content(base, step, form):
    stock = reply_content(plus(base, step))
    return (
        stock if form == "stock" else with_delta(stock, read_delta(stock, Model(base)))
    )


@pytest.mark.parametrize("form", ["stock", "delta"])
def test_it_reads_stock_and_our_clients_and_keeps_the_models_form(row, inner, form):
    layer, base, messages, nodes = start(row, inner)
    replies = nodes.reply(messages, content(base, 1.0, form))
    arrays, metrics = layer.aggregate_train(1, replies)
    assert [(k, a.dtype, a.shape) for k, a in arrays.items()] == [
        (k, a.dtype, a.shape) for k, a in base.items()
    ]
    assert weights(arrays).mean() > 0.5
    assert metrics is not None


def test_error_replies_do_not_stop_it(row, inner):
    layer, base, messages, nodes = start(row, inner)
    replies = nodes.reply(messages[:3], content(base, 1.0, "delta"))
    replies += [Message(Error(2, "lost"), reply_to=m) for m in messages[3:]]
    arrays, _ = layer.aggregate_train(1, replies)
    assert np.isfinite(weights(arrays)).all()


def test_without_replies_the_model_is_kept(row, inner):
    layer, _, _, _ = start(row, inner)
    arrays, metrics = layer.aggregate_train(1, [])
    if layer.always_releases:
        assert np.isfinite(weights(arrays)).all()
        assert np.ptp(weights(arrays)) > 0  # noise is released all the same
    else:
        assert (arrays, metrics) == (None, None)


def test_the_global_model_is_not_changed(row, inner):
    layer, base, messages, nodes = start(row, inner)
    before = weights(base).copy()
    layer.aggregate_train(1, nodes.reply(messages, content(base, 1.0, "delta")))
    np.testing.assert_array_equal(weights(base), before)


def test_its_state_is_json_and_arrays(row, inner):
    layer, base, messages, nodes = start(row, inner)
    layer.aggregate_train(1, nodes.reply(messages, content(base, 1.0, "delta")))
    tensors = {}
    text = json.dumps(_packed(layer.state(), tensors, "s"), allow_nan=False)
    again = made(row, inner)
    again.load_state(_unpacked(json.loads(text), tensors))
    found: dict = {}
    assert json.dumps(_packed(again.state(), found, "s")) == text
    assert found.keys() == tensors.keys()
    for key in tensors:
        np.testing.assert_array_equal(found[key], tensors[key])


def test_it_forwards_evaluation(row, inner):
    layer, base, _, _ = start(row, inner)
    grid = grid_of(adding_app(lambda p, r: 0.0), 3)
    messages = list(layer.configure_evaluate(1, base, config(), grid))
    assert len(messages) == 3
    metrics = layer.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert metrics["loss"] == pytest.approx(0.5)


def test_its_summary_names_it_and_what_is_inside(row, inner, caplog):
    layer, _, _, _ = start(row, inner)
    logger = logging.getLogger("flwr")
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    try:
        layer.summary()
    finally:
        logger.removeHandler(caplog.handler)
    assert type(layer).__name__ in caplog.text
    assert "Sampling" in caplog.text
