"""What a node is: its name, its share of the data, its task, as its operator says.

The run config comes from the server and is not trusted with anything on this machine:
the operator's node config says which code a task name means (``task-code``), which
tasks are allowed (``tasks``) and where the data are (``data-path``). The job's
``data.path`` counts in simulations only, where node and server are one machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from flwr.app import Context

from truststram._flower import in_simulated_node
from truststram.errors import ConfigError
from truststram.job import Job, Value
from truststram.private_sections import SecureKeys
from truststram.task import Node, Task
from truststram.tasks import load_task
from truststram.techniques import refuse_outside_simulation

__all__ = [
    "is_simulated",
    "job_of",
    "local_job",
    "node_of",
    "permit",
    "task_of",
    "train_data",
]

# What a node's operator who names no delta most likely means.
MAX_DELTA = 1e-5


def job_of(context: Context) -> Job:
    """Return the validated job; a config this version cannot honour is an error."""
    return _job(tuple(sorted(context.run_config.items())))


@lru_cache(maxsize=8)
def _job(items: tuple[tuple[str, Value], ...]) -> Job:
    return Job.of(dict(items))


def permit(job: Job, context: Context) -> None:
    """Refuse a job that this node's operator does not allow.

    The job comes from the run config, which the server sends: without these keys of
    the node config a server may ask for weaker protection, or for none.

    ``max-epsilon``
        The weakest differential privacy that the node answers; a job without any is
        refused too.
    ``max-delta``
        The largest delta, with which an epsilon is worth nothing if it is large; 1e-5
        if there is a ``max-epsilon``.
    ``local-noise``
        Only jobs in which this node adds the noise itself, so that the server need not
        be trusted.
    ``secure-schemes``
        Comma list of the only ``secure.scheme`` that the node answers.
    ``secure-threat``
        ``semi-honest``: only jobs with a secure sum; ``malicious``: only those with
        ``secure.threat = malicious``.
    ``secure-min-cohort``
        The smallest ``secure.min-cohort`` that the node answers.

    With any of the last three, a job without a secure sum is refused (unless
    ``secure-schemes`` lists ``none``), and so is one that leaves arrays in clear
    (``secure.layers``), and one whose groups change (``secure.regroup``), since the
    server can then solve for single updates, unless

    ``secure-regroup``
        is true.

    Groups that do not change are held to by this node within one Flower run; another
    run, which the server may start, may have other groups.

    Who holds a job's key is fixed by the key files that the
    operator put on the node (:mod:`strategies.secure.keys`).

    Trusted all the same: the app, which is the code that checks this and which Flower
    installs as the SuperLink sends it, and the rest of the run config, which decides
    what is trained (with a secure sum, the same on all its nodes:
    :mod:`strategies.secure.given`).

    Raises
    ------
    ConfigError
        With what the job says and what the node allows.
    """
    _permit_privacy(job, context)
    _permit_secure(job.secure, context.node_config)


def _permit_privacy(job: Job, context: Context) -> None:
    keys, config = job.privacy, context.node_config
    if keys.insecure and not is_simulated(context):
        raise ConfigError(
            "privacy.insecure: the server could subtract the noise; simulations only."
        )
    most = config.get("max-epsilon")
    if most is not None and not (keys.on and keys.epsilon <= float(most)):
        found = f"epsilon {keys.epsilon:g}" if keys.on else "no differential privacy"
        raise ConfigError(f"The job has {found}; this node allows epsilon {most}.")
    likely = config.get("max-delta", None if most is None else MAX_DELTA)
    if likely is not None and not (keys.on and keys.delta <= float(likely)):
        found = f"delta {keys.delta:g}" if keys.on else "no differential privacy"
        raise ConfigError(
            f"The job has {found}; this node allows delta {float(likely):g} "
            "(max-delta in the node config)."
        )
    by_nodes = keys.on and not keys.central and not keys.distributed
    if config.get("local-noise") and not by_nodes:
        raise ConfigError(
            "This node answers only jobs in which it adds the noise itself "
            "(privacy.trust = local)."
        )


def _permit_secure(keys: SecureKeys, config: Mapping[str, Value]) -> None:
    schemes = config.get("secure-schemes")
    threat = config.get("secure-threat")
    least = config.get("secure-min-cohort")
    if schemes is None and threat is None and least is None:
        return
    allowed = [name.strip() for name in str(schemes or "").split(",")]
    if schemes is not None and keys.scheme not in allowed:
        raise ConfigError(
            f"The job has secure.scheme = {keys.scheme}; this node allows {schemes}."
        )
    if threat not in (None, "semi-honest", "malicious"):
        raise ConfigError(
            f"secure-threat = {threat}: expected semi-honest or malicious."
        )
    if not keys.on and threat is None and least is None:
        return  # the operator lists none
    if not keys.on:
        raise ConfigError("The job has no secure sum; this node asks for one.")
    if threat == "malicious" != keys.threat:
        raise ConfigError(
            f"The job has secure.threat = {keys.threat}; this node allows malicious."
        )
    if least is not None and keys.min_cohort < int(least):
        raise ConfigError(
            f"The job has secure.min-cohort = {keys.min_cohort}; this node allows "
            f"{least} and more."
        )
    if keys.layers:
        raise ConfigError(
            "The job leaves arrays in clear (secure.layers); this node allows none."
        )
    if keys.regroup and str(config.get("secure-regroup")).lower() != "true":
        raise ConfigError(
            "The job sums over groups that change (secure.regroup), which may give "
            "single updates away; this node asks for secure-regroup = true in its "
            "config."
        )


def is_simulated(context: Context) -> bool:
    """Return whether this node is a simulated one."""
    return bool(context.node_config.get("simulated")) or in_simulated_node()


def node_of(context: Context, server_round: int = 0) -> Node:
    """Return the node that ``context`` describes.

    A simulated node is named by its partition, a deployed one by its Flower node id,
    which the SuperLink ties to the node's registered key.
    """
    config = context.node_config
    simulated = is_simulated(context)
    partition = config.get("partition-id")
    path = config.get("data-path") or os.environ.get("TRUSTSTRAM_DATA")
    if not path and simulated:
        path = job_of(context).data.path
    return Node(
        name=str(partition) if simulated else str(context.node_id),
        partition=None if partition is None else int(partition),
        partitions=None if partition is None else int(config["num-partitions"]),
        data_path=str(path) if path else None,
        round=server_round,
    )


def local_job(context: Context) -> Job:
    """Return the job with this node's own data path instead of the server's."""
    return _local(job_of(context), node_of(context).data_path or "")


@lru_cache(maxsize=8)
def _local(job: Job, data_path: str) -> Job:
    return job.replace({"data.path": data_path})


def task_of(context: Context) -> Task:
    """Return the task that the job names, as this node defines it."""
    return load_task(job_of(context).task.name, context.node_config)


def train_data(context: Context) -> Any:
    """Return this node's training data, loaded once in this process."""
    refuse_outside_simulation(job_of(context).adversary.kind, is_simulated(context))
    task = cast(Any, task_of(context))  # a protocol does not promise to be hashable
    return _train_data(local_job(context), task, node_of(context))


# Small: a deployed node has one share, a simulation's worker meets a few dozen.
@lru_cache(maxsize=64)
def _train_data(job: Job, task: Any, node: Node) -> Any:
    data = task.train_data(job, node)
    if job.adversary.kind == "none":
        return data
    from truststram.techniques import poisoned  # needs torch

    return poisoned(data, task, job, node)
