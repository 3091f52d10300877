"""Every key of a run, declared once: section, name, default, accepted values, help.

A section is a frozen dataclass; its fields are the keys. ``switch`` names the field
(and its value "off") without which the rest of the section has no effect.
:class:`truststram.job.Job` checks the values and puts the sections together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .keys import key as _key


@dataclass(frozen=True)
class TaskKeys:
    """What is trained."""

    name: str = _key(
        "digits", "name of the task; each node decides which code it means"
    )


@dataclass(frozen=True)
class DataKeys:
    """Which data each simulated node gets."""

    partitioner: str = _key(
        "dirichlet",
        "how a simulation splits the data over nodes",
        *("iid", "dirichlet", "pathological", "natural-id"),
    )
    alpha: float = _key(
        0.5, "dirichlet concentration; smaller is more skewed", low=0, open_low=True
    )
    classes_per_node: int = _key(2, "pathological: label classes a node holds", low=1)
    seed: int = _key(1, "seed of the split", low=0)
    path: str = _key("", "data file or folder (a node's own config overrides it)")
    label: str = _key("label", "tabular: name of the label column")
    id_column: str = _key("", "tabular: column that names the natural owner of a row")
    classes: int = _key(2, "tabular: number of label classes", low=2, high=100_000)


@dataclass(frozen=True)
class TrainKeys:
    """Local training on a node."""

    rounds: int = _key(20, "federated rounds", low=1, high=1_000_000)
    local_epochs: int = _key(2, "passes over the local data in a round", low=1)
    batch_size: int = _key(16, "local batch size", low=1)
    lr: float = _key(0.1, "local SGD learning rate", low=0, open_low=True)
    momentum: float = _key(0.0, "local SGD momentum", low=0, high=1, open_high=True)


@dataclass(frozen=True)
class ServerKeys:
    """What the server does with the aggregated update."""

    optimizer: str = _key(
        "sgd",
        "server optimizer applied to the aggregated update",
        *("sgd", "adam", "yogi", "adagrad"),
    )
    lr: float = _key(
        0.0,
        "server learning rate; 0: the usual one (sgd 1, others 0.03; sgd with privacy "
        "by the server: by the noise, with momentum 0.9)",
        low=0,
    )
    momentum: float = _key(0.0, "server momentum (sgd)", low=0, high=1, open_high=True)
    average: float = _key(
        -1.0,
        "last part of the rounds whose models are averaged into the final one; 0: the "
        "last model alone; -1: 0.5 with differential privacy by the server, else 0",
        low=-1,
        high=1,
    )


@dataclass(frozen=True)
class RoundKeys:
    """When a round starts, ends and counts."""

    min_nodes: int = _key(
        2,
        "nodes that must be connected before a round; with a secure sum the default "
        "means as many as its smallest cohort needs",
        low=1,
    )
    join_timeout: float = _key(
        120.0, "seconds to wait for them before the run fails", low=0, open_low=True
    )
    fraction: float = _key(
        1.0, "fraction of the connected nodes sampled", low=0, high=1, open_low=True
    )
    deadline: float = _key(
        600.0, "seconds after which a phase ends without the rest", low=0, open_low=True
    )
    quorum: float = _key(
        1.0,
        "fraction of replies after which a phase ends early",
        low=0,
        high=1,
        open_low=True,
    )
    max_failed: int = _key(
        3, "rounds in a row without a valid reply before the run fails", low=1
    )
    evaluate: str = _key(
        "auto",
        "who evaluates; auto: the server if it holds test data, else the clients",
        *("auto", "server", "clients", "both", "none"),
    )


@dataclass(frozen=True)
class RobustKeys:
    """Which rule turns updates into one update."""

    switch: ClassVar[tuple[str, str]] = ("rule", "mean")
    rule: str = _key(
        "mean",
        "how updates become one; mean: trusts every node, the others outvote liars",
        *("mean", "wfagg", "wfagg-paper", "median", "trimmed-mean", "krum"),
        *("multi-krum", "bulyan", "geometric-median", "centered-clipping"),
    )
    f: int = _key(
        -1,
        "malicious nodes among the replies to outvote; -1: 30 % of each round's, "
        "fewer where the rule allows fewer",
        low=-1,
    )
    pre: str = _key(
        "none",
        "mixing before the rule; nnm: each update with its nearest (nodes with "
        "unlike data), bucketing: random pairs (needs twice the nodes)",
        *("none", "nnm", "bucketing"),
    )


@dataclass(frozen=True)
class AnomalyKeys:
    """What happens to nodes that misbehave."""

    switch: ClassVar[tuple[str, str]] = ("enabled", "off")
    enabled: str = _key(
        "auto",
        "tell which nodes misbehave; auto: with a robust rule",
        *("auto", "on", "off"),
    )
    quarantine: int = _key(
        10, "rounds that a repeat offender is left out; 0: never", low=0
    )
    alert_fraction: float = _key(
        0.3,
        "an alert is raised above this fraction of nodes that misbehave or are in "
        "quarantine",
        low=0,
        high=1,
    )
    response: str = _key(
        "log",
        "to an alert; stop: the run, after two alerted rounds in a row, tighten: "
        "shorten updates while it lasts",
        *("log", "stop", "tighten"),
    )


@dataclass(frozen=True)
class AdversaryKeys:
    """Attackers, in simulations only."""

    switch: ClassVar[tuple[str, str]] = ("kind", "none")
    kind: str = _key(
        "none",
        "what malicious nodes do",
        *("none", "noise", "sign-flip", "label-flip", "ipm", "alie", "min-max"),
        *("min-max-sd", "min-max-sign", "mimic", "backdoor", "drift", "sybil"),
    )
    fraction: float = _key(0.0, "fraction of malicious nodes", low=0, high=1)
    strength: float = _key(1.0, "strength of the attack", low=0)


@dataclass(frozen=True)
class RunKeys:
    """Where a run writes and how it repeats."""

    seed: int = _key(1, "seed of the run", low=0)
    dir: str = _key(
        "", "absolute folder of all runs; empty: runs/ of the server process"
    )
    id: str = _key("", "name of the run's folder; empty: made from date and time")
    resume: str = _key("", "id of an interrupted run to continue")
    checkpoint_every: int = _key(1, "rounds between durable round records", low=1)
    patience: int = _key(
        0, "evaluated rounds without a better model before stopping; 0: never", low=0
    )
