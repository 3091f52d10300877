"""What a job can have with TensorFlow Federated, what only without, and why.

One table for people (``truststram tff capabilities``), for the refusals of a run, and
for whoever chooses between torch and TFF for a job: :func:`reasons_against`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truststram.errors import ConfigError, ProtocolError
from truststram.job import Job, Value

from .analytics import Analytics, checked, conflicts
from .plan import Plan, read_plan
from .sealed import conflicts as sealed_conflicts
from .torch_silo import SHARED
from .training import Training
from .two_vectors import conflicts as two_vector_conflicts

__all__ = [
    "CAPABILITIES",
    "Capability",
    "check",
    "compiled_settings",
    "described",
    "read_for",
    "reasons_against",
]


@dataclass(frozen=True)
class Capability:
    """One thing that a job may ask for.

    Attributes
    ----------
    kind : {"algorithm", "aggregator", "layer", "task"}
    name : str
        As in the job.
    runs : bool
        Whether a plan with it runs over Flower.
    how : str
        What executes it; or why it does not run, and what to choose instead.
    """

    kind: str
    name: str
    runs: bool
    how: str


CAPABILITIES: tuple[Capability, ...] = (
    Capability("algorithm", "fed-avg", True, "TFF's local SGD and server step"),
    Capability("algorithm", "fed-prox", True, "the same with TFF's proximal term"),
    Capability("algorithm", "fed-sgd", True, "one gradient of all local data"),
    Capability(
        "algorithm",
        "mime-lite",
        True,
        "the server's momentum in each local step; silos send an update and a gradient "
        "as one vector with one weight, which robust.rule, privacy, compression and "
        "secure.scheme are refused with",
    ),
    Capability(
        "aggregator",
        "mean",
        True,
        "our weighted mean gives TFF's sums, unless the guard caps a silo (more than "
        "10 times the median number of examples)",
    ),
    Capability(
        "aggregator",
        "robust",
        True,
        "TFF's zeroing and clipping in the silo; with robust.rule = mean and without "
        "privacy, because its counts are taken as silos send them",
    ),
    Capability(
        "aggregator",
        "compression",
        False,
        "no layer could read the updates: aggregator mean and compression.codec",
    ),
    Capability(
        "aggregator",
        "secure",
        True,
        "TFF's own integers, masked and added exactly by secure.scheme = secagg, which "
        "it needs; silos weigh as the plan says, and no other layer sees them; TFF "
        "clips a weight (examples x epochs) above 2^20 - 1",
    ),
    Capability(
        "aggregator",
        "dp",
        False,
        "its noise is floating point and in no ledger: aggregator mean and "
        "privacy.mechanism",
    ),
    Capability("layer", "robust", True, "rules see each silo's update over its weight"),
    Capability("layer", "anomaly", True, "as in every run"),
    Capability(
        "layer", "privacy (client)", True, "clip and noise on the update; equal weights"
    ),
    Capability(
        "layer",
        "privacy (example)",
        False,
        "gradients of single examples are inside the plan: a job without tff.plan",
    ),
    Capability("layer", "compression", True, "codecs on the update"),
    Capability(
        "layer",
        "secure",
        True,
        "our secure sums of the update; equal weights, whatever the silos' sizes (not "
        "with aggregator secure, whose integers have the weights in them)",
    ),
    Capability(
        "task", "classifier of a torch module", True, "torch.export, cross-entropy"
    ),
    Capability(
        "task",
        "evaluation by silos",
        True,
        "TFF's federated evaluation (round.evaluate), silos capped as in training; "
        "with torch for a task with other metrics than accuracy and loss, with "
        "privacy, and of a plan without tff.evaluation; not with secure sums",
    ),
    Capability(
        "task",
        "a computation of your own",
        True,
        "tff.computation: one exchange; the server adds up what silos send, without "
        "any layer",
    ),
    Capability(
        "task",
        "other losses, other optimizers than SGD in silos",
        False,
        "a task of its own with train(), without tff.plan",
    ),
)


def reasons_against(job: Job) -> list[str]:
    """Return why a job cannot be one of TensorFlow Federated; empty if it can.

    For the choice of a framework before anything is compiled. The model's operators are
    known only after tracing (``truststram tff compile`` names those that are missing).
    """
    reasons = []
    if job.privacy.on and job.privacy.unit == "example":
        reasons.append(_row("layer", "privacy (example)"))
    return reasons


def _row(kind: str, name: str) -> str:
    [row] = (c for c in CAPABILITIES if (c.kind, c.name) == (kind, name))
    return f"{row.name}: {row.how}"


def read_for(path: str) -> Plan:
    """Return the plan that ``tff.plan`` names.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    try:
        return read_plan(Path(path))
    except OSError as error:
        raise ConfigError(f"tff.plan = {path}: {error.strerror}.") from error
    except ProtocolError as error:
        raise ConfigError(f"tff.plan = {path}: {error}.") from error


def compiled_settings(path: str) -> dict[str, Value]:
    """Return the keys of a job that follow from the plan in a file.

    Raises
    ------
    ConfigError
        As :func:`read_for`.
    """
    plan = read_for(path)
    keys = {key: plan.job[key] for key in ("task.name", *SHARED) if key in plan.job}
    if "analytics" in plan.programs:
        keys |= {"train.rounds": 1, "round.evaluate": "none"}
    return keys


# (whether it applies, what, why, instead), for a plan whose aggregator counts.
_COUNTING: tuple[tuple[Callable[[Job], bool], str], ...] = (
    (
        lambda job: job.robust.rule != "mean",
        "robust.rule: the plan's own clip follows counts that a liar sends; no rule "
        "looks at them. Compile the plan with aggregator mean",
    ),
    (
        lambda job: job.privacy.on,
        "privacy.mechanism: the counts that the plan's clip follows are not noised. "
        "Compile the plan with aggregator mean",
    ),
    (
        lambda job: job.secure.on,
        "secure.scheme: the counts that the plan's clip follows would travel in clear. "
        "Compile the plan with aggregator mean",
    ),
    (
        lambda job: job.tff.mixed,
        "tff.mixed: torch silos do not count what the plan's clip follows. Compile the "
        "plan with aggregator mean",
    ),
)


def check(plan: Plan, job: Job) -> Training | Analytics:
    """Return what ``plan`` is for, if ``job`` can run it.

    Raises
    ------
    ConfigError
        One line for each reason why not.
    """
    found, problems = checked(plan), []
    if isinstance(found, Analytics):
        problems += conflicts(job)
    elif found.sealed:
        problems += sealed_conflicts(found.sealed, job)
    else:
        if found.two_vectors:
            problems += two_vector_conflicts(job)
        if found.counts:
            problems += [line for applies, line in _COUNTING if applies(job)]
    if (task := str(plan.job["task.name"])) != job.task.name:
        problems.append(
            f"task.name = {job.task.name}: the plan was compiled for {task}. Set "
            f"task.name = {task}"
        )
    config, usual = job.config(), Job().config()
    for key in SHARED:
        # A default was not asked for, so the plan's value simply counts.
        asked = job.tff.mixed or config[key] != usual[key]
        if asked and config[key] != plan.job[key]:
            problems.append(
                f"{key} = {config[key]}: the plan was compiled with {plan.job[key]}"
            )
    if problems:
        raise ConfigError("\n".join(f"tff.plan with {line}." for line in problems))
    return found


def described(plan: Plan, job: Job) -> dict[str, Any]:
    """Return what the event ``tff-plan`` tells of a plan."""
    spec = plan.job
    common = {
        "plan": plan.sha256,
        "bytes": len(plan.to_bytes()),
        "built-with": plan.built_with,
    }
    if "analytics" in plan.programs:
        return {**common, "algorithm": str(spec.get("tff.computation", ""))}
    equal = job.privacy.on or job.secure.on or job.robust.rule != "mean"
    if sealed := Training(plan).sealed:
        equal = False  # weights are among the integers
        common |= {"integers": sealed.size, "integer-bits": sealed.bits}
    uniform = spec["tff.weighting"] == "uniform"
    return {
        **common,
        "algorithm": spec["tff.algorithm"],
        "aggregator": spec["tff.aggregator"],
        "server": f"{spec['server.optimizer']}, lr {spec['server.lr']:g}",
        "weights": "equal" if equal or uniform else "examples",
    }
