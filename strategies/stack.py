"""The one ordered table of layers; :mod:`.refusals` says which do not go together.

A reply passes the table from top to bottom on the server and from bottom to top on the
client: the first entry is the outermost Strategy and the outermost Mod. Both sides are
folded from this one list, so their order cannot diverge.

    client:  train -> [delta] -> ... -> reply
    server:  reply -> [anomaly] -> [guard] -> ... -> [rule] -> server optimizer -> model
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedYogi, Strategy

from truststram.job import Job
from truststram.rng import derive_seed

from .adversary.layer import Adversary
from .anomaly.layer import Anomaly
from .base import StrategyLayer, walk
from .compression.layer import Compression
from .compression.mod import compression_mod
from .guard.layer import Guard
from .mean.layer import WeightedMean
from .refusals import REFUSALS, check, rule_of, watched
from .robust.layer import Robust
from .robust.rule import AUTO
from .secure.integers import runs_of
from .secure.sizes import least_nodes
from .server_sgd import ServerSGD
from .tail_average import TailAverage
from .update import delta_mod

__all__ = [
    "LAYERS",
    "REFUSALS",
    "Layer",
    "build",
    "check",
    "least_nodes",
    "mods",
    "sampling",
    "walk",
]


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


def _anomaly(job: Job, inner: Strategy) -> StrategyLayer:
    keys = job.anomaly
    return Anomaly(
        inner,
        # Of groups it would take honest nodes with a malicious one.
        quarantine=0 if job.secure.group_size else keys.quarantine,
        alert_fraction=keys.alert_fraction,
        response=keys.response,
        verdicts=job.robust.rule in JUDGES,
    )


def _compression(job: Job, inner: Strategy) -> StrategyLayer:
    keys = job.compression
    return Compression(
        inner,
        codec=keys.codec,
        ratio=keys.ratio,
        error_feedback=keys.error_feedback,
        downlink=keys.downlink,
        error_tolerance=keys.error_tolerance,
        target_seconds=keys.target_seconds,
        reduced=job.secure.scheme != "none" and keys.codec != "none",
        seed=derive_seed(job.run.seed, "compression"),
    )


def _guard(job: Job, inner: Strategy) -> StrategyLayer:
    return Guard(inner, static=job.privacy.central)


def _is_encrypted(job: Job) -> bool:
    return job.secure.scheme in ("ckks", "bfv")


def _secure_sum(job: Job, inner: Strategy) -> StrategyLayer:
    from .secure.layer import SecureSum  # cryptography is not for every run

    return SecureSum(job, inner)


def _secure_mod(job: Job) -> Mod:
    from .secure.mod import secure_mod

    return secure_mod(job)


def _is_masked(job: Job) -> bool:
    return job.secure.scheme == "secagg"


def _secagg_sum(job: Job, inner: Strategy) -> StrategyLayer:
    from .secure.secagg_layer import SecAggSum

    return SecAggSum(job, inner, _encoder(job))


def _secagg_mod(job: Job) -> Mod:
    from .secure.secagg_mod import secagg_mod

    return secagg_mod(job, _encoder(job))


def _encoder(job: Job) -> Callable[[int], Any] | None:
    """Return what makes the secure sum's integers of updates with noise in shares."""
    if not job.privacy.distributed:
        return None
    from .mechanisms.encoder import encoder_for

    return partial(encoder_for, job)


def _distributed_dp(job: Job, inner: Strategy) -> StrategyLayer:
    from .mechanisms.distributed_layer import DistributedDP

    return DistributedDP(job, inner)


def _central_dp(job: Job, inner: Strategy) -> StrategyLayer:
    from .mechanisms.layer import CentralDP  # accounting takes a second to import

    return CentralDP(job, inner)


def _private_mod(job: Job) -> Mod:
    from .mechanisms.mod import private_mod

    return private_mod(job)


def _is_mean(job: Job) -> bool:
    return job.robust.rule == "mean" and not job.privacy.central


def _mean(job: Job, inner: Strategy) -> StrategyLayer:
    # Numbers of examples are data.
    return WeightedMean(inner, weighted=not job.privacy.on)


def _is_sum_noisy(job: Job) -> bool:
    """Return whether what is released is a noisy sum, not noisy updates."""
    return job.privacy.central or job.privacy.distributed


def _first_averaged(job: Job) -> int:
    """Return the first round of the final average; 0 if there is none."""
    part = job.server.average
    if part < 0:
        part = 0.5 if _is_sum_noisy(job) else 0.0
    return job.train.rounds - math.ceil(part * job.train.rounds) + 1 if part else 0


def _tail_average(job: Job, inner: Strategy) -> StrategyLayer:
    return TailAverage(inner, _first_averaged(job))


def _robust(job: Job, inner: Strategy) -> StrategyLayer:
    # Malicious nodes may leave out their noise: no more are assumed than it bears.
    most = job.secure.colluders if job.privacy.distributed else None
    return Robust(rule_of(job), inner, auto_f=job.robust.f == AUTO, most_f=most)


# Rules whose rejection is a verdict on a node. The others reject a fixed number of
# updates (or mixtures of them) whatever comes, or nobody.
JUDGES = ("wfagg",)

LAYERS: tuple[Layer, ...] = (
    # Charges a round whatever arrives; reads no reply.
    Layer("distributed-dp", lambda job: job.privacy.distributed, wrap=_distributed_dp),
    # Outermost on both sides: nothing else sees, or changes, what a node has sealed.
    Layer("secure", _is_encrypted, wrap=_secure_sum, mod=_secure_mod),
    Layer("secagg", _is_masked, wrap=_secagg_sum, mod=_secagg_mod),
    # Outside all that reads updates: what is inside sees them decoded. On a node,
    # outside all that makes them.
    Layer(
        "compression",
        lambda job: job.compression.on,
        wrap=_compression,
        mod=lambda job: compression_mod,
    ),
    # Simulations only: outside every defence, inside whatever decodes.
    Layer("adversary", lambda job: job.adversary.kind != "none", wrap=_adversary),
    # Outside the guard: what that drops is evidence.
    Layer("anomaly", watched, wrap=_anomaly),
    Layer("guard", _always, wrap=_guard),
    # Exactly one of these three reduces the updates to one.
    Layer("central-dp", lambda job: job.privacy.central, wrap=_central_dp),
    Layer("robust", lambda job: job.robust.rule != "mean", wrap=_robust),
    Layer("mean", _is_mean, wrap=_mean),
    Layer("tail-average", lambda job: _first_averaged(job) > 0, wrap=_tail_average),
    # What leaves a node: outside all that makes the update.
    Layer("private", lambda job: job.privacy.on, mod=_private_mod),
    Layer("delta", _always, mod=lambda job: delta_mod),
)


# Rows of every job that look at updates one by one.
JUDGING = ("guard", "mean")

# What `server.lr = 0` means: the usual rate of each optimizer.
USUAL_LR = {"sgd": 1.0, "adam": 0.03, "yogi": 0.03, "adagrad": 0.03}


def build(job: Job, innermost: Strategy | None = None) -> Strategy:
    """Return the server's strategy: all enabled layers around the server optimizer.

    Parameters
    ----------
    job : Job
    innermost : Strategy, optional
        In the place of the job's server optimizer; it samples as :func:`sampling` says.
        One that takes sums of integers (:mod:`.secure.integers`) has no guard and no
        mean around it: there is no update that they could read.
    """
    check(job)
    strategy = innermost or _optimizer(job)
    whole = bool(runs_of(strategy))
    for layer in reversed(LAYERS):
        if layer.wrap and layer.enabled(job) and not (whole and layer.name in JUDGING):
            strategy = layer.wrap(job, strategy)
    return strategy


def mods(job: Job) -> list[Mod]:
    """Return the client's mods, outermost first."""
    return [layer.mod(job) for layer in LAYERS if layer.mod and layer.enabled(job)]


def sampling(job: Job) -> dict[str, Any]:
    """Return how the innermost strategy samples nodes: options of Flower's FedAvg."""
    return {
        # Under central privacy the cohort is drawn, and kept secret, by that layer.
        "fraction_train": 1.0 if job.privacy.central else job.round.fraction,
        # Whether clients are asked at all is the round loop's decision.
        "fraction_evaluate": 1.0 if job.privacy.central else job.round.fraction,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": least_nodes(job),
    }


def _optimizer(job: Job) -> Strategy:
    """Return the innermost strategy, which also samples the nodes."""
    name = job.server.optimizer
    lr = job.server.lr or USUAL_LR[name]
    if name == "sgd":
        # The usual rate of a noisy sum depends on the noise: its layer sets it.
        usual = 0.9 if _is_sum_noisy(job) and job.server.lr == 0 else 0.0
        momentum = job.server.momentum or usual
        return ServerSGD(lr=lr, momentum=momentum, **sampling(job))
    adaptive = {"adam": FedAdam, "yogi": FedYogi, "adagrad": FedAdagrad}[name]
    return adaptive(eta=lr, **sampling(job))  # type: ignore[no-any-return]  # a table of types
