"""What a server needs to run a plan: a strategy, an offer to nodes, an event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord
from flwr.serverapp.strategy import Strategy

from truststram.errors import ConfigError
from truststram.job import Job
from truststram.task import Task
from truststram.techniques import stack

from .agreement import offer
from .analytics import Analytics
from .analytics_server import AnalyticsServer
from .capabilities import check, described, read_for
from .evaluation import Evaluation, with_what
from .evaluation_layer import PlanEvaluation
from .execution import require_tensorflow
from .plan import Plan
from .runtime import CoordinatorRuntime
from .sealed_server import SealedServer
from .strategy import TFFServer
from .training import Training
from .two_vectors import TwoVectors, TwoVectorServer

__all__ = ["PlanRun", "load"]


@dataclass(frozen=True)
class PlanRun:
    """A plan, ready to be run.

    Attributes
    ----------
    strategy : TFFServer, PlanEvaluation or AnalyticsServer
        The innermost strategy, if silos evaluate with the plan with a layer around it;
        that of a computation stands alone, without layers.
    offer : ConfigRecord
        What every node must agree to before it takes part.
    about : dict
        The event ``tff-plan``.
    """

    strategy: TFFServer | PlanEvaluation | AnalyticsServer
    offer: ConfigRecord
    about: dict[str, Any]

    @property
    def alone(self) -> bool:
        """Whether the strategy is the whole stack."""
        return isinstance(self.strategy, AnalyticsServer)

    def around(self, layers: Strategy) -> Strategy:
        """Return the job's layers with what the plan needs outside of them."""
        *_, innermost = stack.walk(layers)
        if isinstance(innermost, TwoVectorServer):
            return TwoVectors(layers, innermost.shapes)
        return layers


def load(job: Job, task: Task) -> PlanRun:
    """Return the run of the plan ``job.tff.plan``: of the model of ``task``, or alone.

    Raises
    ------
    ConfigError
        If the plan cannot be read or run, does not fit the job or the task's model, or
        TensorFlow is not installed here.
    """
    require_tensorflow("the server")
    found = check(read_for(job.tff.plan), job)
    plan, coordinator = found.plan, CoordinatorRuntime(found.program)
    about = described(plan, job)
    if isinstance(found, Analytics):
        alone = AnalyticsServer(found, coordinator, **stack.sampling(job))
        return PlanRun(alone, offer(plan), about)
    _check_model(plan, task, job)
    trained = _kind(found)(found, coordinator, **stack.sampling(job))
    about["evaluation"] = with_what(plan, task, job)
    if about["evaluation"] == "plan":
        return PlanRun(_evaluated(trained, plan, task), offer(plan), about)
    return PlanRun(trained, offer(plan), about)


def _kind(training: Training) -> type[TFFServer]:
    """Return the strategy that reads what silos send."""
    if training.sealed:
        return SealedServer
    return TwoVectorServer if training.two_vectors else TFFServer


def _evaluated(trained: TFFServer, plan: Plan, task: Task) -> PlanEvaluation:
    """Return a server of a plan whose silos evaluate with the plan too."""
    evaluation = Evaluation.of(plan)
    coordinator = CoordinatorRuntime(evaluation.program)
    return PlanEvaluation(trained, evaluation, coordinator, tuple(task.metrics))


def _check_model(plan: Plan, task: Task, job: Job) -> None:
    """Refuse a plan of another model than the task's, which evaluates it."""
    state = task.model(job, seed=0).state_dict()
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != plan.parameters:
        differing = sorted(found.items() ^ plan.parameters.items())
        names = ", ".join(dict.fromkeys(name for name, _ in differing))
        raise ConfigError(
            f"tff.plan: the plan's model is not that of task {job.task.name}; they "
            f"differ in {names[:200]}. Compile the plan again from this task."
        )
