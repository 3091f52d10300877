"""Before a run: the guarantee in words, every mechanism at its budget, and the noise.

The noise-to-signal ratio compares the noise of one round with the longest sum that its
updates can have: all of them as long as the clip, and all in one direction. It follows
from public numbers, so that nobody has to train for a hundred rounds to learn that a
budget was hopeless.
"""

from __future__ import annotations

import math
from typing import Any

from .._locate import app_module
from ..errors import ConfigError
from ..job import Job
from ..records import Spec
from ..tasks import load_task
from ..techniques import Plan, stack
from .plan_of_examples import of_examples
from .plan_text import verdict

__all__ = ["model_size", "preview"]


def preview(job: Job, nodes: int, shuffled: int = 0) -> dict[str, Any]:
    """Return what a job's privacy settings mean, as JSON values.

    Parameters
    ----------
    job : Job
    nodes : int
        Registered nodes.
    shuffled : int
        Replies of honest nodes that a party other than the server would mix; 0: none,
        which is what this version has.

    Raises
    ------
    ConfigError
        For a job without privacy, or one that cannot be honoured.
    """
    stack.check(job)
    if not job.privacy.on:
        raise ConfigError(
            "privacy.mechanism = none: there is nothing to plan. Try "
            "-c privacy.mechanism=auto"
        )
    if nodes < 1:
        raise ConfigError(f"nodes = {nodes}: expected >= 1.")
    size = model_size(job)
    common = {"task": job.task.name, "nodes": nodes, "parameters": size}
    examples = job.privacy.unit == "example"
    found = of_examples if examples else _of_clients
    if job.privacy.distributed:
        found = _of_shares
    content = {**common, **found(job, nodes, size), **_of_evaluation(job, nodes)}
    return content | (_of_shuffling(job, size, shuffled) if shuffled else {})


def model_size(job: Job) -> int:
    """Return the number of values in an update of the job's model."""
    from flwr.app import ArrayRecord

    model = load_task(job.task.name).model(job, seed=0)
    return Spec.of(ArrayRecord(model.state_dict())).size


def _of_clients(job: Job, nodes: int, size: int) -> dict[str, Any]:
    """Return the plan for noise on whole updates."""
    plan = Plan.of(job, nodes, size)
    # Noise on the sum once, or on every update: then the lengths add up by squares.
    power = 1.0 if job.privacy.central else 0.5
    asked = nodes * job.round.fraction
    long = math.sqrt(size)

    def ratio(std: float) -> float:
        return float(std * long / asked**power)

    ledger = plan.ledger(job)
    for release, count in plan.charges(job).items():
        ledger.charge(release, count)
    table = app_module("strategies.mechanisms.budget").choices(job, nodes, size)
    now = ratio(plan.std)
    needed = math.ceil((plan.std * long) ** (1 / power) / job.round.fraction)
    fitting = math.floor((asked**power / plan.std) ** 2)
    return {
        "guarantee": f"After all {plan.rounds} rounds: {ledger.describe()}",
        "epsilon": job.privacy.epsilon,
        "delta": job.privacy.delta,
        "mechanism": plan.release.mechanism,
        "noise-std": plan.std,
        "schedule": job.privacy.schedule,
        "levels": plan.described(job)["levels"],
        "mechanisms": [
            {
                "mechanism": choice.mechanism,
                "std": choice.std,
                "ratio": choice.ratio,
                "noise-to-signal": ratio(choice.std),
                "admissible": choice.admissible,
                "why-not": choice.why,
            }
            for choice in table
        ],
        "noise-to-signal": now,
        "verdict": verdict(now),
        "bearable": {"nodes": needed, "parameters": fitting},
        "advice": _advice(needed, fitting),
    }


def _of_shares(job: Job, nodes: int, size: int) -> dict[str, Any]:
    """Return the plan for noise in shares, in secure sums of all that are asked."""
    shares = app_module("strategies.mechanisms.distributed")
    plan = shares.distributed_plan(job, size)
    asked = max(1, round(nodes * job.round.fraction))
    groups = shares.groups_of(job, asked)
    ledger = plan.ledger(job)
    ledger.charge(plan.release, plan.rounds)
    std, ratio = plan.std(asked // groups), plan.ratio(asked, groups)
    # The signal grows with the nodes, the noise with their root.
    needed = math.ceil(ratio**2 * asked / job.round.fraction)
    return {
        "guarantee": f"After all {plan.rounds} rounds: {ledger.describe()}",
        "epsilon": job.privacy.epsilon,
        "delta": job.privacy.delta,
        "mechanism": plan.release.mechanism,
        "noise-std": std,
        "schedule": job.privacy.schedule,
        "levels": plan.levels(asked // groups),
        "mechanisms": [
            {
                "mechanism": plan.release.mechanism,
                "std": std,
                "ratio": 1.0,
                "noise-to-signal": ratio,
                "admissible": True,
                "why-not": "",
            }
        ],
        "noise-to-signal": ratio,
        "verdict": verdict(ratio),
        "bearable": {"nodes": needed, "parameters": math.floor(size / ratio**2)},
        "advice": f"{_advice(needed, 0)} The noise is sized for {plan.honest} honest "
        "nodes in a sum (secure.min-cohort - secure.colluders): more of them add less.",
        **(_of_groups(job, plan, asked) if job.secure.group_size else {}),
    }


def _of_groups(job: Job, plan: Any, asked: int) -> dict[str, Any]:
    """Return how noisy that is which a robust rule across groups sees."""
    shares = app_module("strategies.mechanisms.distributed")
    groups, least = shares.groups_of(job, asked), max(asked, job.secure.min_cohort)
    alone = job.replace({"secure.group-size": 0, "secure.min-cohort": least})
    one = shares.distributed_plan(alone, plan.release.dimension)
    return {
        "groups": {
            "count": groups,
            "noise-to-signal": plan.ratio(asked // groups),
            "size-for-1": plan.group_for(1.0, job.secure.colluders),
            "one-sum": one.ratio(least),
            "warning": shares.warning(plan, job, asked),
        }
    }


def _advice(nodes: int, size: int) -> str:
    """Return what would make the ratio 1."""
    smaller = f", or a model of {size:,} values" if size else ""
    return f"At this budget {nodes:,} nodes give a noise / signal of 1{smaller}."


def _of_evaluation(job: Job, nodes: int) -> dict[str, Any]:
    """Return what accuracies the nodes tell, and how exact they are."""
    evaluation = app_module("strategies.mechanisms.evaluation")
    release, central = evaluation.accuracy_release(job), job.privacy.central
    if release is None:
        return {}
    asked = nodes if central else max(1, round(nodes * job.round.fraction))
    error = evaluation.told_error(release, asked, central=central)
    times = job.privacy.evaluations(job.train.rounds)
    told = {"times": times, "epsilon": release.epsilon0, "nodes": asked}
    return {"evaluation": {**told, "error-points": 100 * error}}


def _of_shuffling(job: Job, size: int, reports: int) -> dict[str, Any]:
    """Return what mixing would make of one round's local epsilon.

    Raises
    ------
    ConfigError
        For noise that mixing does nothing for, or that has no bound for it.
    """
    release = None
    if job.privacy.unit == "client" and not job.privacy.central:
        release = Plan.of(job, 1, size).release
    if release is None or release.mechanism == "gaussian" or reports < 1:
        found = "no noise by the nodes" if release is None else release.mechanism
        raise ConfigError(
            f"--shuffled {reports}: there is a bound for mixed replies with pure local "
            f"epsilon; the job has {found}. Try privacy.trust = local with "
            "privacy.mechanism = laplace or staircase, and at least 1 reply."
        )
    amplified = app_module("strategies.accounting.shuffle").amplified
    mixed = amplified(release.pure_epsilon, reports, job.privacy.delta)
    return {
        "shuffled": {
            "replies": reports,
            "local-epsilon": release.pure_epsilon,
            "epsilon": mixed,
            "delta": job.privacy.delta,
            "available": False,
        }
    }
