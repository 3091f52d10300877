"""The node decides: its data, which code a task name means, what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from client_app.main import app
from client_app.node import local_job, node_of
from strategies.update import Model, is_delta, read_delta
from tests.support.task import TinyTask
from truststram import __version__
from truststram._flower import make_context
from truststram.errors import ConfigError
from truststram.job import Job
from truststram.rng import derive_seed
from truststram.tasks import register_task

SIMULATED = {"partition-id": 2, "num-partitions": 5, "simulated": True}


def context(node_config=SIMULATED, node_id=77, **changes):
    register_task("tiny", TinyTask)
    job = Job.of({"task.name": "tiny", "train.local-epochs": 1, **changes})
    return make_context(node_id, node_config, job.config())


def model():
    return ArrayRecord(TinyTask().model(Job(), seed=3).state_dict())


def message(kind, number=1):
    content = RecordDict(
        {"arrays": model(), "config": ConfigRecord({"server-round": number})}
    )
    return Message(content, 77, kind)


def test_hello_tells_name_and_version():
    reply = app(message("query"), context())
    assert dict(reply.content["hello"]) == {"name": "2", "version": __version__}


def test_train_returns_an_update_and_how_many_examples_it_stands_for():
    reply = app(message("train"), context())
    assert is_delta(reply.content)
    delta = read_delta(reply.content, Model(model()))
    assert np.isfinite(delta).all()
    assert np.abs(delta).max() > 0
    assert reply.content["metrics"]["num-examples"] == 26
    assert reply.content["metrics"]["train-loss"] > 0


def test_train_repeats_and_depends_on_seed_node_and_round():
    def delta(number=1, partition=2, **changes):
        config = {**SIMULATED, "partition-id": partition}
        reply = app(message("train", number), context(config, **changes))
        return read_delta(reply.content, Model(model())).tobytes()

    first = delta()
    assert delta() == first
    assert delta(number=2) != first
    assert delta(partition=3) != first
    assert delta(**{"run.seed": 2}) != first


def test_training_leaves_torchs_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    app(message("train"), context())
    assert torch.equal(torch.rand(3), expected)


def test_evaluate_returns_the_tasks_metrics():
    reply = app(message("evaluate"), context())
    assert set(reply.content["metrics"]) == {"accuracy", "loss", "num-examples"}
    assert len(reply.content.array_records) == 0


def test_a_simulated_node_is_named_by_its_partition():
    node = node_of(context(**{"data.path": "/job/path"}), 4)
    assert (node.name, node.partition, node.partitions, node.round) == ("2", 2, 5, 4)
    assert node.data_path == "/job/path"


def test_a_deployed_node_ignores_the_servers_path(monkeypatch):
    monkeypatch.delenv("TRUSTSTRAM_DATA", raising=False)
    deployed = context({}, **{"data.path": "/etc/secret.csv"})
    node = node_of(deployed)
    assert (node.name, node.partition, node.data_path) == ("77", None, None)
    assert local_job(deployed).data.path == ""
    own = context({"data-path": "/own.csv"}, **{"data.path": "/etc/secret.csv"})
    assert node_of(own).data_path == "/own.csv"
    assert local_job(own).data.path == "/own.csv"
    monkeypatch.setenv("TRUSTSTRAM_DATA", "/env.csv")
    assert node_of(deployed).data_path == "/env.csv"


def test_the_operator_decides_which_code_a_name_means():
    config = {**SIMULATED, "task-code": "tiny=tests.support.task:FailingNodes"}
    with pytest.raises(Exception, match="planned failure"):
        app(message("train"), context({**config, "partition-id": 3}))


def test_the_operator_decides_which_tasks_are_allowed():
    with pytest.raises(Exception, match="is not allowed by this node's `tasks`"):
        app(message("train"), context({**SIMULATED, "tasks": "digits"}))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("task.name", "os:system", "is unknown here"),
        ("task.name", "tests.support.task:TinyTask", "is unknown here"),
        ("train.lr", -1.0, "expected > 0"),
        ("privacy.delta", 0.02, "<= 0.01"),
        ("surprise.key", 1, "Unknown key"),
        ("compression.codec", "zip", "expected one of none, q8"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_an_error(key, value, reason):
    bad = context()
    bad.run_config[key] = value
    with pytest.raises(Exception, match=reason):
        app(message("train"), bad)


def test_a_model_of_another_shape_is_an_error():
    content = RecordDict(
        {
            "arrays": ArrayRecord(torch.nn.Linear(3, 3).state_dict()),
            "config": ConfigRecord({"server-round": 1}),
        }
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        app(Message(content, 77, "train"), context())


def test_seed_is_63_bits():
    assert 0 <= derive_seed(1, "train", "2", 1) < 2**63


DEPLOYED = {"task-code": "tiny=tests.support.task:TinyTask"}
LOCAL = {"privacy.mechanism": "gaussian", "privacy.trust": "local"}


@pytest.mark.parametrize(
    ("node", "job", "words"),
    [
        ({"max-epsilon": 4.0}, {}, "no differential privacy"),
        ({"max-epsilon": 4.0}, LOCAL, "epsilon 8"),
        ({"max-epsilon": 8.0}, {**LOCAL, "privacy.delta": 0.01}, "allows delta 1e-05"),
        ({"max-delta": 1e-6}, LOCAL, "allows delta 1e-06"),
        ({"max-delta": 1e-6}, {}, "no differential privacy"),
        ({"local-noise": True}, {"privacy.mechanism": "gaussian"}, "itself"),
        ({"local-noise": True}, {}, "itself"),
        (DEPLOYED, {**LOCAL, "privacy.insecure": True}, "subtract the noise"),
    ],
)
def test_a_node_refuses_less_privacy_than_its_operator_wants(node, job, words):
    base = node if node is DEPLOYED else {**SIMULATED, **node}
    with pytest.raises(ConfigError, match=words):
        app(message("train"), context(base, **job))


def test_a_node_answers_what_its_operator_allows():
    node = {**SIMULATED, "max-epsilon": 8.0, "local-noise": True}
    reply = app(message("train"), context(node, **LOCAL))
    node["max-delta"] = 1e-3
    app(message("train"), context(node, **LOCAL, **{"privacy.delta": 1e-3}))
    assert dict(reply.content["metrics"]) == {"num-examples": 1}
