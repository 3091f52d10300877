"""The one ordered table of layers, and which combinations are refused.

A reply passes the table from top to bottom on the server and from bottom to top on the
client: the first entry is the outermost Strategy and the outermost Mod. Both sides are
folded from this one list, so their order cannot diverge.

    client:  train -> [delta] -> ... -> reply
    server:  reply -> [anomaly] -> [guard] -> ... -> [rule] -> server optimizer -> model
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedYogi, Strategy

from truststram.errors import ConfigError
from truststram.job import Job
from truststram.rng import derive
from truststram.sections import AnomalyKeys

from .adversary.layer import Adversary
from .anomaly.layer import Anomaly
from .base import StrategyLayer, walk
from .guard.layer import Guard
from .mean.layer import WeightedMean
from .robust.layer import Robust
from .robust.make import OF_CLIENTS, make_rule
from .robust.rule import AUTO, Rule
from .server_sgd import ServerSGD
from .update import delta_mod

__all__ = ["LAYERS", "REFUSALS", "Layer", "Refusal", "build", "check", "mods", "walk"]


@dataclass(frozen=True)
class Layer:
    """One row of the table.

    ``wrap`` makes the server half around an inner strategy, ``mod`` the client half;
    either may be missing.
    """

    name: str
    enabled: Callable[[Job], bool]
    wrap: Callable[[Job, Strategy], StrategyLayer] | None = None
    mod: Callable[[Job], Mod] | None = None


def _rule(job: Job) -> Rule:
    """Return a fresh robust rule (wfagg for a job that has none)."""
    keys = job.robust
    name = "wfagg" if keys.rule == "mean" else keys.rule
    rng = derive(job.run.seed, "bucketing")
    return make_rule(name, max(keys.f, 0), keys.pre, rng=rng)


def _mixes_clients(job: Job) -> bool:
    return job.robust.rule in OF_CLIENTS and job.robust.pre != "none"


def _too_few(job: Job) -> bool:
    """Return whether the smallest cohort is too small for the rule's f.

    Never for an automatic f, which is what the replies of a round allow.
    """
    if job.robust.rule == "mean" or job.robust.f == AUTO or _mixes_clients(job):
        return False
    cohort = max(1, int(job.round.min_nodes * job.round.fraction))
    return _rule(job).refusal(cohort) is not None


def _always(_: Job) -> bool:
    return True


def _adversary(job: Job, inner: Strategy) -> StrategyLayer:
    keys = job.adversary
    return Adversary(
        inner,
        kind=keys.kind,
        fraction=keys.fraction,
        strength=keys.strength,
        seed=job.run.seed,
    )


def _watched(job: Job) -> bool:
    """Return whether nodes are watched; ``auto`` is with a robust rule."""
    choice = job.anomaly.enabled
    return choice == "on" or (choice == "auto" and job.robust.rule != "mean")


def _anomaly(job: Job, inner: Strategy) -> StrategyLayer:
    keys = job.anomaly
    return Anomaly(
        inner,
        quarantine=keys.quarantine,
        alert_fraction=keys.alert_fraction,
        response=keys.response,
        verdicts=job.robust.rule in JUDGES,
    )


def _robust(job: Job, inner: Strategy) -> StrategyLayer:
    return Robust(_rule(job), inner, auto_f=job.robust.f == AUTO)


# Rules whose rejection is a verdict on a node. The others reject a fixed number of
# updates (or mixtures of them) whatever comes, or nobody.
JUDGES = ("wfagg",)

LAYERS: tuple[Layer, ...] = (
    # Simulations only: outside every defence, inside whatever decodes.
    Layer("adversary", lambda job: job.adversary.kind != "none", wrap=_adversary),
    # Outside the guard: what that drops is evidence.
    Layer("anomaly", _watched, wrap=_anomaly),
    Layer("guard", _always, wrap=lambda job, inner: Guard(inner)),
    # Exactly one of these two reduces the updates to one.
    Layer("robust", lambda job: job.robust.rule != "mean", wrap=_robust),
    Layer(
        "mean",
        lambda job: job.robust.rule == "mean",
        wrap=lambda job, inner: WeightedMean(inner),
    ),
    Layer("delta", _always, mod=lambda job: delta_mod),
)


@dataclass(frozen=True)
class Refusal:
    """A combination that does not run: what, why, and what to choose instead."""

    applies: Callable[[Job], bool]
    what: str
    why: str
    instead: str

    def line(self) -> str:
        """Return the error line."""
        return f"{self.what} is refused: {self.why}. Instead: {self.instead}."


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        lambda job: job.server.optimizer != "sgd" and job.server.momentum > 0,
        "server.momentum with an adaptive server.optimizer",
        "adam, yogi and adagrad have their own moments and would ignore it",
        "server.momentum = 0, or server.optimizer = sgd",
    ),
    Refusal(
        lambda job: job.data.partitioner == "natural-id" and not job.data.id_column,
        "data.partitioner = natural-id without data.id-column",
        "the column that names the owner of a row is not known",
        "set data.id-column, or another data.partitioner",
    ),
    Refusal(
        _too_few,
        "robust.rule with more attackers than it can outvote",
        "a cohort of round.min-nodes times round.fraction is too small for robust.f "
        "(most rules need more than 2 f nodes, krum 2 f + 3, bulyan 4 f + 3; "
        "robust.pre = bucketing leaves half as many)",
        "raise round.min-nodes, lower robust.f, or robust.f = -1 (automatic)",
    ),
    Refusal(
        _mixes_clients,
        "robust.pre with a rule that judges each node by its own past",
        "a mixed update is not one node's, and wfagg mixes by itself where that helps",
        "robust.pre = none, or another robust.rule, such as trimmed-mean",
    ),
    Refusal(
        lambda job: job.robust.pre == "nnm" and job.robust.f == 0,
        "robust.pre = nnm with robust.f = 0",
        "each update would be mixed with all others: the mean, whatever the rule",
        "robust.f = -1 (automatic) or above 0, or robust.pre = none",
    ),
    Refusal(
        lambda job: (
            job.anomaly.enabled == "auto"
            and not _watched(job)
            and job.anomaly != AnomalyKeys()
        ),
        "anomaly settings with anomaly.enabled = auto and robust.rule = mean",
        "auto watches the nodes with a robust rule only: nothing would read them",
        "anomaly.enabled = on, or a robust.rule",
    ),
    Refusal(
        lambda job: job.adversary.kind != "none" and job.adversary.fraction == 0,
        "adversary.kind without adversary.fraction",
        "nobody would be malicious",
        "set adversary.fraction, such as 0.2",
    ),
)

# What `server.lr = 0` means: the usual rate of each optimizer.
USUAL_LR = {"sgd": 1.0, "adam": 0.03, "yogi": 0.03, "adagrad": 0.03}


def check(job: Job) -> None:
    """Refuse unsound combinations of settings.

    Raises
    ------
    ConfigError
        One line for each refusal that applies.
    """
    lines = [refusal.line() for refusal in REFUSALS if refusal.applies(job)]
    if lines:
        raise ConfigError("\n".join(lines))


def build(job: Job) -> Strategy:
    """Return the server's strategy: all enabled layers around the server optimizer."""
    check(job)
    strategy = _optimizer(job)
    for layer in reversed(LAYERS):
        if layer.wrap and layer.enabled(job):
            strategy = layer.wrap(job, strategy)
    return strategy


def mods(job: Job) -> list[Mod]:
    """Return the client's mods, outermost first."""
    return [layer.mod(job) for layer in LAYERS if layer.mod and layer.enabled(job)]


def _optimizer(job: Job) -> Strategy:
    """Return the innermost strategy, which also samples the nodes."""
    name = job.server.optimizer
    lr = job.server.lr or USUAL_LR[name]
    clients = job.round.evaluate in ("auto", "clients", "both")
    sampling = {
        "fraction_train": job.round.fraction,
        "fraction_evaluate": job.round.fraction if clients else 0.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": job.round.min_nodes,
    }
    if name == "sgd":
        return ServerSGD(lr=lr, momentum=job.server.momentum, **sampling)
    adaptive = {"adam": FedAdam, "yogi": FedYogi, "adagrad": FedAdagrad}[name]
    return adaptive(eta=lr, **sampling)  # type: ignore[no-any-return]  # a table of types
