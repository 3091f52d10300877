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
        "noise; auto: the one with the least noise for this model and budget (dp-sgd "
        "for examples, skellam where nodes add shares)",
        *("none", "auto", "gaussian", "laplace", "staircase", "dp-sgd", "skellam"),
    )
    unit: str = _key(
        "client",
        "what is protected: all data of a node, or one example (dp-sgd)",
        *("client", "example"),
    )
    trust: str = _key(
        "auto",
        "who adds the noise: the server, which sees updates (central), each node "
        "(local), or all nodes together, a share each, in a secure sum (distributed); "
        "auto: central for clients, local for examples",
        *("auto", "central", "local", "distributed"),
    )
    relation: str = _key(
        "auto",
        "neighbouring relation; auto: replace for clients with local noise or with "
        "fixed sampling, else add-remove",
        *("auto", "add-remove", "replace"),
    )
    epsilon: float = _key(8.0, "privacy budget of the run", low=0, open_low=True)
    delta: float = _key(
        1e-5,
        "failure probability of the guarantee: at that rate it may give away anything, "
        "so well below one over the number of units",
        low=1e-10,
        high=0.01,
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
        "cohort: each node with probability round.fraction (poisson), the same "
        "without a claim of secrecy (none), or exactly that part of the nodes, whose "
        "number may not change (fixed)",
        *("poisson", "fixed", "none"),
    )
    schedule: str = _key(
        "constant",
        "noise over the rounds: the same; less and less (increasing); or less whenever "
        "the server's public test data show no progress (on-plateau)",
        *("constant", "increasing", "on-plateau"),
    )
    evaluate_epsilon: float = _key(
        0.0,
        "part of epsilon for the nodes' accuracies, each told with Staircase noise "
        "(round.evaluate = clients); 0: they are not told",
        low=0,
    )
    evaluate_every: int = _key(
        0,
        "rounds from one such evaluation to the next; each has less noise when they "
        "are fewer; 0: after the last round only",
        low=0,
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
    def distributed(self) -> bool:
        """Whether each node adds a share of the noise, for a secure sum."""
        return self.on and self.trust == "distributed"

    @property
    def neighbours(self) -> str:
        """The neighbouring relation, resolved."""
        if self.relation != "auto":
            return self.relation
        local = self.unit == "client" and not self.central
        return "replace" if local or self.sampling == "fixed" else "add-remove"

    @property
    def training_epsilon(self) -> float:
        """What is left of epsilon for training."""
        return self.epsilon - self.evaluate_epsilon

    def evaluates(self, number: int, rounds: int) -> bool:
        """Return whether nodes tell an accuracy after round ``number`` of ``rounds``.

        Without privacy after each; otherwise where it is charged.
        """
        if not self.on:
            return True
        every = self.evaluate_every
        due = number == rounds or (every > 0 and number % every == 0)
        return due and self.evaluate_epsilon > 0

    def evaluations(self, rounds: int, done: int | None = None) -> int:
        """Return how many of the first ``done`` rounds have a charged evaluation."""
        if not (self.on and self.evaluate_epsilon):
            return 0
        done, every = rounds if done is None else done, self.evaluate_every or rounds
        return done // every + (done == rounds and rounds % every > 0)


@dataclass(frozen=True)
class CompressionKeys:
    """Smaller messages."""

    codec: str = _key(
        "none",
        "uplink: bytes (q8), the largest coordinates (topk, as bytes topk-q8), those "
        "of a public selection (topk-shared, randk: for secure sums), 1 or 2 bits a "
        "value (eden), or chosen for each node (adaptive)",
        *("none", "q8", "topk", "topk-q8", "topk-shared", "randk", "eden-1", "eden-2"),
        "adaptive",
    )
    ratio: float = _key(
        0.1,
        "fraction of coordinates kept by topk and randk",
        low=0,
        high=1,
        open_low=True,
    )
    error_feedback: bool = _key(
        True, "nodes add to an update what topk left out of earlier ones"
    )
    error_tolerance: float = _key(
        0.2,
        "adaptive: accepted part of an update's squared length that is lost",
        low=0,
        high=1,
        open_low=True,
    )
    target_seconds: float = _key(
        0.0,
        "adaptive: as exact as an update's transfer in this time allows, by the speed "
        "measured (deployments only); 0: as small as the tolerance allows",
        low=0,
    )
    downlink: str = _key(
        "none",
        "what nodes get of a new model: all of it (none), or its difference to what "
        "they have, encoded",
        *("none", "q8", "topk-q8", "eden-2"),
    )

    @property
    def on(self) -> bool:
        """Whether messages are compressed in any direction."""
        return self.codec != "none" or self.downlink != "none"


@dataclass(frozen=True)
class SecureKeys:
    """Sums that hide their terms from the server."""

    switch: ClassVar[tuple[str, str]] = ("scheme", "none")
    scheme: str = _key(
        "none",
        "how sums are hidden: homomorphic encryption with exact integers (bfv, the "
        "smallest) or approximate numbers that are rounded to integers (ckks); or "
        "masks that cancel, which need no key and bear dropouts (secagg)",
        *("none", "ckks", "bfv", "secagg"),
    )
    key_holder: str = _key(
        "clients",
        "who decrypts sums (ckks, bfv): every node has the key, and any one of them "
        "could read the others with the server's help; or a node of its own that does "
        "nothing else (bfv)",
        *("clients", "decryptor"),
    )
    group_size: int = _key(0, "secure sums inside groups of this size; 0: all", low=0)
    regroup: bool = _key(
        False,
        "other groups whenever the model has changed, so that honest nodes are not "
        "left out for good with a malicious neighbour; from sums over changing groups "
        "the server can solve for single nodes' updates, as these resemble each other",
    )
    min_cohort: int = _key(
        3, "smallest number of nodes in a sum; below it nothing is decrypted", low=3
    )
    max_cohort: int = _key(
        100,
        "largest number of nodes in a sum; fewer leave more bits for each value. Keys "
        "are made for this number",
        low=3,
        high=10_000,
    )
    clip: float = _key(
        1.0,
        "largest absolute value of one entry of an update; what is beyond counts as "
        "this, and events tell how many were",
        low=0,
        open_low=True,
    )
    colluders: int = _key(
        0,
        "nodes of a sum that are assumed to tell the server what they sent, noise "
        "included, or to add none: min-cohort is at least 3 more, and noise is sized "
        "for the others",
        low=0,
    )
    threat: str = _key(
        "semi-honest",
        "server assumed; malicious (decryptor): the decryptor gets all signed frames "
        "and adds them itself; malicious (secagg): bears dropouts of less than a third "
        "of the nodes, semi-honest: of half",
        *("semi-honest", "malicious"),
    )
    layers: str = _key(
        "",
        "patterns of array names to encrypt, separated by commas, such as fc*; the "
        "others travel in clear; empty: everything is encrypted",
    )

    @property
    def on(self) -> bool:
        """Whether sums are hidden from the server."""
        return self.scheme != "none"

    @property
    def least(self) -> int:
        """Smallest number of nodes in a sum, which every node and server sees to.

        ``secure.min-cohort``, and no fewer than three that do not collude: of two, each
        knows the other's part.
        """
        return max(self.min_cohort, 3 + self.colluders)

    @property
    def keeps_groups(self) -> bool:
        """Whether there are groups that are fixed for the run."""
        return self.group_size > 0 and not self.regroup


@dataclass(frozen=True)
class TffKeys:
    """TensorFlow Federated plans."""

    switch: ClassVar[tuple[str, str]] = ("plan", "")
    plan: str = _key(
        "",
        "file made by `truststram tff compile`, on the server; it brings the model, "
        "local training (its own epochs, batch size and rate) and the server's step",
    )
    mixed: bool = _key(
        False,
        "silos may train with torch instead (tff-engine in the node's config); "
        "training metrics, which the two do not share, are then not sent",
    )
