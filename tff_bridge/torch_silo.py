"""Silos that take part in a plan with torch: when that is the same computation.

A federation whose job says ``tff.mixed`` may have silos without TensorFlow. They train
the job's task with torch (:class:`truststram.tasks.torch_task.TorchTask`), on the same
batches in the same order, and send the same update. That is the plan's algorithm only
if it is plain local SGD with the job's own settings, weighted by examples.
"""

from __future__ import annotations

from truststram.errors import ConfigError
from truststram.job import Job

from .training import Training

__all__ = ["SHARED", "check_torch"]

# Settings of local training that a plan has compiled in and a torch silo reads.
SHARED = ("train.local-epochs", "train.batch-size", "train.lr", "train.momentum")


def check_torch(training: Training, job: Job) -> None:
    """Refuse to stand in for a plan whose updates torch silos do not make.

    Raises
    ------
    ConfigError
        One line for each reason.
    """
    spec, config = training.plan.job, job.config()
    problems = []
    if not job.tff.mixed:
        problems.append(
            "tff-engine = torch in the node's config, but the job's silos run the plan "
            "(tff.mixed = false)."
        )
    if (spec["tff.algorithm"], spec["tff.weighting"]) != ("fed-avg", "examples"):
        problems.append(
            f"Torch silos cannot run {spec['tff.algorithm']} with weighting "
            f"{spec['tff.weighting']}: only fed-avg with weighting examples."
        )
    if training.sealed:
        problems.append("Torch silos do not make integers of updates as the plan does.")
    if training.counts:
        problems.append("Torch silos do not count what the plan's aggregator adds up.")
    problems += [
        f"{key} = {config[key]}: the plan has {spec[key]}, torch silos need the same."
        for key in SHARED
        if config[key] != spec[key]
    ]
    if problems:
        raise ConfigError("\n".join(problems))
