"""The ClientApp: train, evaluate, and say hello."""

from __future__ import annotations

from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from truststram import __version__
from truststram._flower import in_simulated_node
from truststram._locate import app_module
from truststram.errors import DataError
from truststram.rng import derive_seed

from .mods import stack_mod
from .node import is_simulated, local_job, node_of, task_of, train_data

__all__ = ["app"]

app = ClientApp(mods=[stack_mod])


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Agree to a plan if one is offered; tell a simulation which partition this is."""
    job, node = local_job(context), node_of(context)
    if job.tff.plan:
        offered = message.content["config"]
        _tff().accept(offered, job, context, is_simulated(context))
    about = ConfigRecord({"name": node.name, "version": __version__})
    return Message(RecordDict({"hello": about}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model on this node's data and return it."""
    _one_thread_in_simulation()
    job, task = local_job(context), task_of(context)
    server_round = int(message.content["config"]["server-round"])  # type: ignore[arg-type]  # set by every Flower strategy
    if job.privacy.unit == "example" and job.privacy.on:
        from truststram.tasks.dp_sgd import check_task  # Opacus takes seconds to import

        check_task(task)
    node = node_of(context, server_round)
    data = train_data(context)
    if len(data) == 0:
        raise DataError(f"node {node.name} has no training examples")
    seed = derive_seed(job.run.seed, "train", node.name, server_round)
    if job.tff.plan and not _tff().uses_torch(context.node_config):
        own = (data, job, seed, context, is_simulated(context))
        return Message(_tff().train(message.content, *own), reply_to=message)
    model = task.model(job, seed=0)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]  # an ArrayRecord
    metrics = dict(task.train(model, data, job, seed))
    if job.tff.mixed:  # silos with TensorFlow have other metrics
        metrics = {}
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({**metrics, "num-examples": len(data)}),
        }
    )
    return Message(content, reply_to=message)


@app.query("compute")
def compute(message: Message, context: Context) -> Message:
    """Run the computation of the job's TFF plan on this node's training data."""
    job, data = local_job(context), train_data(context)
    if len(data) == 0:
        raise DataError(f"node {node_of(context).name} has no training examples")
    own = (data, job, context, is_simulated(context))
    return Message(_tff().compute(message.content, *own), reply_to=message)


def _tff() -> Any:
    """Return the silo's half of the bridge to TensorFlow Federated."""
    return app_module("tff_bridge.client")


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received model on this node's held-out data."""
    _one_thread_in_simulation()
    job, task = local_job(context), task_of(context)
    node = node_of(context)
    data = task.test_data(job, node)
    if data is None or len(data) == 0:
        raise DataError(f"node {node.name} has no test examples")
    if job.tff.plan and _tff().evaluates(message.content, context.node_config):
        own = (data, job, context, is_simulated(context))
        return Message(_tff().evaluate(message.content, *own), reply_to=message)
    model = task.model(job, seed=0)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]  # an ArrayRecord
    metrics = dict(task.evaluate(model, data, job))
    record = MetricRecord({**metrics, "num-examples": len(data)})
    return Message(RecordDict({"metrics": record}), reply_to=message)


def _one_thread_in_simulation() -> None:
    """Make sums on every simulated node the same, whatever the number of cores."""
    if in_simulated_node():
        import torch

        torch.set_num_threads(1)
