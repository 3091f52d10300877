"""Which settings do not go together, why, and what to choose instead.

``job.py`` checks single values; this is checked before a run starts, on the server and
on every node.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from truststram.errors import ConfigError
from truststram.job import Job
from truststram.rng import derive
from truststram.sections import AnomalyKeys

from .compression.refusals import COMPRESSION
from .mechanisms.distributed_refusals import DISTRIBUTED
from .mechanisms.refusals import PRIVACY
from .refusal import Refusal
from .robust.make import OF_CLIENTS, make_rule
from .robust.rule import AUTO, Rule
from .secure.group_refusals import GROUPS
from .secure.refusals import SECURE
from .secure.secagg_refusals import MASKED
from .secure.sizes import least_nodes
from .tff import TFF

__all__ = ["REFUSALS", "Refusal", "check", "rule_of", "watched"]


def rule_of(job: Job) -> Rule:
    """Return a fresh robust rule (wfagg for a job that has none)."""
    keys = job.robust
    name = "wfagg" if keys.rule == "mean" else keys.rule
    rng = derive(job.run.seed, "bucketing")
    options: dict[str, Any] = {}
    if name == "wfagg" and job.secure.group_size:  # rows are means of groups
        options["temporal"] = False
        if job.secure.regroup:  # and those of one name are not of the same nodes
            options["ema"] = 0.0
    return make_rule(name, max(keys.f, 0), keys.pre, rng=rng, **options)


def _mixes_clients(job: Job) -> bool:
    return job.robust.rule in OF_CLIENTS and job.robust.pre != "none"


def _too_few(job: Job) -> bool:
    """Return whether the smallest cohort is too small for the rule's f.

    Never for an automatic f, which is what the replies of a round allow.
    """
    if job.robust.rule == "mean" or job.robust.f == AUTO or _mixes_clients(job):
        return False
    cohort = max(1, int(least_nodes(job) * job.round.fraction))
    cohort //= job.secure.group_size or 1
    return rule_of(job).refusal(cohort) is not None


def watched(job: Job) -> bool:
    """Return whether nodes are watched; ``auto`` is with a robust rule."""
    choice = job.anomaly.enabled
    return choice == "on" or (choice == "auto" and job.robust.rule != "mean")


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
            and not watched(job)
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
    *PRIVACY,
    *DISTRIBUTED,
    *COMPRESSION,
    *SECURE,
    *MASKED,
    *GROUPS,
    *TFF,
)


def check(job: Job) -> None:
    """Refuse unsound combinations of settings.

    Raises
    ------
    ConfigError
        One line for each refusal that applies, or what must be installed.
    """
    if job.privacy.on and find_spec("dp_accounting") is None:
        raise ConfigError(
            "privacy.mechanism needs dp-accounting, which is not installed: "
            "pip install 'truststram-fl[privacy]'."
        )
    lines = [refusal.line() for refusal in REFUSALS if refusal.applies(job)]
    if lines:
        raise ConfigError("\n".join(lines))
