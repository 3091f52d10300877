"""The keys of what protects data: noise, smaller and sealed messages, compiled plans.

As in :mod:`.sections`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .keys import key as _key


@dataclass(frozen=True)
class PrivacyKeys:
    """Differential privacy."""

    switch: ClassVar[tuple[str, str]] = ("mechanism", "none")
    mechanism: str = _key(
        "none",
        "noise; auto: the one with the least noise for this model and budget",
        *("none", "auto", "gaussian", "laplace", "staircase", "dp-sgd"),
    )
    unit: str = _key(
        "client",
        "what is protected: all data of a node, or one example (dp-sgd)",
        *("client", "example"),
    )
    trust: str = _key(
        "auto",
        "who adds the noise: the server, which sees updates (central), or each node "
        "(local); auto: central for clients, local for examples",
        *("auto", "central", "local"),
        planned="distributed",
    )
    relation: str = _key(
        "auto",
        "neighbouring relation; auto: replace for clients with local noise, else "
        "add-remove",
        *("auto", "add-remove", "replace"),
    )
    epsilon: float = _key(8.0, "privacy budget of the run", low=0, open_low=True)
    delta: float = _key(
        1e-5,
        "failure probability of the guarantee",
        low=1e-10,
        high=1,
        open_high=True,
    )
    clip: float = _key(
        1.0,
        "bound on the norm of an update (of an example's gradient: dp-sgd); about "
        "0.45 of the usual norm serves well",
        low=0,
        open_low=True,
    )
    clip_quantile: float = _key(
        0.0,
        "fraction of updates that the clip should leave alone, followed privately; "
        "0: the clip is fixed",
        low=0,
        high=1,
        open_high=True,
    )
    sampling: str = _key(
        "poisson",
        "cohort: each node with probability round.fraction (poisson), or the same "
        "without a claim of secrecy (none)",
        *("poisson", "none"),
        planned="fixed",
    )
    on_exhausted: str = _key(
        "stop",
        "when the budget is spent: end the run, or go on evaluating",
        *("stop", "evaluate-only"),
    )
    insecure: bool = _key(
        False, "noise repeats with run.seed, which gives no privacy: tests only"
    )

    @property
    def on(self) -> bool:
        """Whether there is any differential privacy."""
        return self.mechanism != "none"

    @property
    def central(self) -> bool:
        """Whether the server adds the noise."""
        auto = "local" if self.unit == "example" else "central"
        return self.on and (auto if self.trust == "auto" else self.trust) == "central"

    @property
    def neighbours(self) -> str:
        """The neighbouring relation, resolved."""
        if self.relation != "auto":
            return self.relation
        replaced = self.unit == "client" and not self.central
        return "replace" if replaced else "add-remove"


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
