"""The ClientApp: train, evaluate, and say hello."""

from __future__ import annotations

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
from truststram.errors import DataError
from truststram.rng import derive_seed

from .mods import stack_mod
from .node import local_job, node_of, task_of, train_data

__all__ = ["app"]

app = ClientApp(mods=[stack_mod])


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Tell the server of a simulation which partition this node holds."""
    node = node_of(context)
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
    model = task.model(job, seed=0)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
    seed = derive_seed(job.run.seed, "train", node.name, server_round)
    metrics = dict(task.train(model, data, job, seed))
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({**metrics, "num-examples": len(data)}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received model on this node's held-out data."""
    _one_thread_in_simulation()
    job, task = local_job(context), task_of(context)
    node = node_of(context)
    data = task.test_data(job, node)
    if data is None or len(data) == 0:
        raise DataError(f"node {node.name} has no test examples")
    model = task.model(job, seed=0)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
    metrics = dict(task.evaluate(model, data, job))
    record = MetricRecord({**metrics, "num-examples": len(data)})
    return Message(RecordDict({"metrics": record}), reply_to=message)


def _one_thread_in_simulation() -> None:
    """Make sums on every simulated node the same, whatever the number of cores."""
    if in_simulated_node():
        import torch

        torch.set_num_threads(1)
