"""Every key of a run, declared once: section, name, default, accepted values, help.

A section is a frozen dataclass; its fields are the keys. ``switch`` names the field
(and its value "off") without which the rest of the section has no effect.
:class:`truststram.job.Job` checks the values and puts the sections together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

__all__ = ["Rule", "Value"]

Value = bool | int | float | str


@dataclass(frozen=True)
class Rule:
    """Which values a key accepts.

    ``choices`` are available now; ``planned`` ones are refused by name. ``low`` and
    ``high`` bound numbers, inclusively unless ``open_low``/``open_high``.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()

    def expected(self) -> str:
        """Say in words what is accepted."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        low = f"{'>' if self.open_low else '>='} {self.low:g}"
        high = f"{'<' if self.open_high else '<='} {self.high:g}"
        bounds = [low] * (self.low > -math.inf) + [high] * (self.high < math.inf)
        return " and ".join(bounds) or "any value"

    def accepts(self, value: Value) -> bool:
        """Return whether ``value`` (of the right type) is accepted."""
        if self.choices:
            return value in self.choices
        if isinstance(value, (bool, str)):
            return True
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below


def _key(
    default: Value, help_: str, *choices: str, planned: str = "", **rule: Any
) -> Any:
    """Declare one key of a section: default, help, accepted values."""
    checked = Rule(choices=choices, planned=tuple(planned.split()), **rule)
    return field(default=default, metadata={"help": help_, "rule": checked})


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
        0.0, "server learning rate; 0: the usual one (sgd 1, others 0.03)", low=0
    )
    momentum: float = _key(0.0, "server momentum (sgd)", low=0, high=1, open_high=True)


@dataclass(frozen=True)
class RoundKeys:
    """When a round starts, ends and counts."""

    min_nodes: int = _key(2, "nodes that must be connected before a round", low=1)
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
class PrivacyKeys:
    """Differential privacy."""

    switch: ClassVar[tuple[str, str]] = ("mechanism", "none")
    mechanism: str = _key(
        "none", "noise", "none", planned="auto gaussian laplace staircase dp-sgd"
    )
    unit: str = _key("client", "what is protected", "client", "example")
    trust: str = _key(
        "central", "who adds the noise", "central", "local", "distributed"
    )
    relation: str = _key("add-remove", "neighbouring relation", "add-remove", "replace")
    epsilon: float = _key(8.0, "privacy budget of the run", low=0, open_low=True)
    delta: float = _key(
        1e-5,
        "failure probability of the guarantee",
        low=0,
        high=1,
        open_low=True,
        open_high=True,
    )
    clip: float = _key(1.0, "bound on the norm of an update", low=0, open_low=True)
    sampling: str = _key("poisson", "cohort sampling", "poisson", "fixed", "none")
    on_exhausted: str = _key(
        "stop", "when the budget is spent", "stop", "evaluate-only"
    )


@dataclass(frozen=True)
class CompressionKeys:
    """Smaller messages."""

    switch: ClassVar[tuple[str, str]] = ("codec", "none")
    codec: str = _key(
        "none",
        "uplink codec",
        "none",
        planned="q8 topk topk-q8 topk-shared randk eden adaptive",
    )
    ratio: float = _key(
        0.1, "fraction of coordinates kept", low=0, high=1, open_low=True
    )
    error_feedback: bool = _key(True, "clients send later what a codec dropped")
    downlink: str = _key("none", "codec of the model sent to nodes", "none")


@dataclass(frozen=True)
class SecureKeys:
    """Sums that hide their terms from the server."""

    switch: ClassVar[tuple[str, str]] = ("scheme", "none")
    scheme: str = _key("none", "secure sum", "none", planned="ckks bfv secagg")
    key_holder: str = _key("clients", "who can decrypt a sum", "clients", "decryptor")
    group_size: int = _key(0, "secure sums inside groups of this size; 0: all", low=0)
    min_cohort: int = _key(3, "smallest number of clients in a sum", low=3)
    threat: str = _key("semi-honest", "server assumed", "semi-honest", "malicious")
    layers: str = _key("", "layer-name patterns to encrypt; empty: everything")


@dataclass(frozen=True)
class TffKeys:
    """TensorFlow Federated plans."""

    switch: ClassVar[tuple[str, str]] = ("plan", "")
    plan: str = _key("", "compiled plan to execute", planned="*")


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
