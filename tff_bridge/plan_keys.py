"""The keys of a plan, declared once: name, default, accepted values, help."""

from __future__ import annotations

from dataclasses import dataclass

from truststram.keys import key as _key

__all__ = ["PlanKeys"]


@dataclass(frozen=True)
class PlanKeys:
    """The table ``[tff]``."""

    algorithm: str = _key(
        "fed-avg",
        "fed-avg: several local steps; fed-prox: held near the global model; fed-sgd: "
        "one gradient of all local data; mime-lite: the server's momentum in each step",
        *("fed-avg", "fed-prox", "fed-sgd", "mime-lite"),
    )
    weighting: str = _key(
        "auto",
        "weight of a silo; auto: its examples, or the same for all with dp",
        *("auto", "examples", "uniform"),
    )
    proximal: float = _key(
        0.0, "fed-prox: strength of the pull to the global model", low=0
    )
    aggregator: str = _key(
        "mean",
        "robust: TFF's zeroing and clipping of long updates; compression: TFF's "
        "quantisation of large arrays; secure: integers, metrics and weights included, "
        "for a run with secure.scheme = secagg; dp: TFF's Gaussian noise",
        *("mean", "robust", "compression", "secure", "dp"),
    )
    zeroing: bool = _key(True, "robust, compression, secure: drop extreme updates")
    clipping: bool = _key(True, "robust, compression, secure: clip to an adaptive norm")
    noise_multiplier: float = _key(
        0.0, "dp: noise on the sum in units of the clip; 0: none (tests)", low=0
    )
    clip: float = _key(1.0, "dp: bound on an update's norm", low=0, open_low=True)
    clients_per_round: int = _key(
        0,
        "dp: the expected number of silos in a round, by which sums are divided",
        low=0,
    )
    evaluation: bool = _key(True, "compile federated evaluation into the plan too")
    allow_frozen_bn: bool = _key(
        False,
        "accept batch normalisation: its running statistics keep their initial values, "
        "so evaluation differs from training",
    )
    input_shape: str = _key(
        "",
        "shape of one example, such as 1x28x28; empty: as the server's test data",
    )
    input_dtype: str = _key(
        "float32", "type of the input, with input-shape", *("float32", "int64")
    )
    computation: str = _key(
        "",
        "a Python file with a tff.federated_computation to compile, not to train; "
        "its Python runs on this machine only; the plan runs once, without layers",
    )
