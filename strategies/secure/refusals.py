"""Which settings do not go together with secure sums, and why.

Not refused, because it is sound:

- Any server optimizer: it sees the mean, as it always does.
- Noise by the nodes: it is in the update before that is encrypted.
- A linear codec of compression: nodes add the same coordinates.
- Nodes that drop out, ``round.quorum`` below 1: the sum is of those that answered, as
  long as they are enough.
"""

from __future__ import annotations

from math import ceil

from truststram.job import Job

from ..refusal import Refusal
from .graph import threshold
from .sizes import LEAST, group_count, least_nodes, trained

__all__ = ["SECURE"]

HE = ("ckks", "bfv")
# What malicious nodes do by themselves; the other attacks are made from all updates.
OWN_ATTACKS = ("label-flip", "backdoor")


def _of_all(job: Job) -> bool:
    """Return whether there is one sum of all nodes."""
    return job.secure.on and job.secure.group_size == 0


def _has_decryptor(job: Job) -> bool:
    return job.secure.key_holder == "decryptor"


def _smallest(job: Job) -> int:
    """Return the nodes of a round when no more than must be are connected."""
    return trained(job, least_nodes(job))


def _asks_too_few(job: Job) -> bool:
    return job.secure.on and _smallest(job) < job.secure.min_cohort


def _asks_too_many(job: Job) -> bool:
    keys, found = job.secure, _smallest(job)
    if keys.group_size:
        groups = group_count(found, keys.group_size) or 1
        found = max(keys.group_size, ceil(found / groups))
    # Whose smallest sum is too large is refused as such.
    return keys.on and found > keys.max_cohort >= keys.min_cohort


def _stops_too_early(job: Job) -> bool:
    """Return whether a round may end with fewer replies than its sum needs."""
    keys, quorum, found = job.secure, job.round.quorum, _smallest(job)
    if keys.scheme == "secagg":
        # graph.threshold: half of any cohort, or more than two thirds.
        early = quorum <= 2 / 3 if keys.threat == "malicious" else quorum < 1 / 2
        if early:
            return True
    return keys.on and ceil(quorum * found) < keys.min_cohort


def _leaves_too_few_groups(job: Job) -> bool:
    """Return whether a round may end with fewer whole groups than the rule needs.

    The replies of a round that ends at its quorum can be those that leave most groups
    one short of what their sum needs, and the rest of the replies in few groups.
    """
    keys, found = job.secure, _smallest(job)
    count = group_count(found, keys.group_size) if keys.group_size else 0
    if not keys.on or not count:
        return False
    size, larger = divmod(found, count)
    needed = keys.least
    if keys.scheme == "secagg":
        needed = max(needed, threshold(size + (larger > 0), keys.threat))
    left, whole = ceil(job.round.quorum * found) - count * (needed - 1), 0
    while left > 0 and whole < count:  # the larger groups take most of what is left
        left -= max(size + (whole < larger) - needed + 1, 1)
        whole += 1
    return whole <= 2 * max(job.robust.f, 0)


SECURE: tuple[Refusal, ...] = (
    Refusal(
        lambda job: _of_all(job) and job.robust.rule != "mean",
        "robust.rule with a secure sum of all nodes",
        "a rule must see several updates, and the server sees their sum only",
        "secure.group-size = 3 or more (the rule then judges the means of groups), or "
        "robust.rule = mean",
    ),
    Refusal(
        lambda job: _of_all(job) and job.anomaly.enabled == "on",
        "anomaly.enabled = on with a secure sum of all nodes",
        "nobody sees what a single node sends",
        "anomaly.enabled = auto or off",
    ),
    Refusal(
        lambda job: job.secure.on and job.adversary.kind not in ("none", *OWN_ATTACKS),
        "adversary.kind with a secure sum",
        "this attack is made from the honest updates, which nobody sees, in groups or "
        "not",
        "adversary.kind = label-flip or backdoor, or secure.scheme = none",
    ),
    Refusal(
        lambda job: job.secure.on and job.privacy.central,
        "privacy by the server with secure.scheme",
        "the server must clip single updates, and it sees their sum only",
        "privacy.trust = local, privacy.unit = example, or secure.scheme = none",
    ),
    Refusal(
        lambda job: job.secure.on and job.round.evaluate in ("clients", "both"),
        "round.evaluate = clients with secure.scheme",
        "accuracies of single nodes would leave them in clear",
        "round.evaluate = auto or server (the server's test data) or none; training "
        "metrics are part of the secure sum",
    ),
    Refusal(
        lambda job: job.secure.scheme == "ckks" and _has_decryptor(job),
        "secure.key-holder = decryptor with secure.scheme = ckks",
        "encryption under a public key is built for bfv, which is smaller and exact",
        "secure.scheme = bfv, or secure.key-holder = clients",
    ),
    Refusal(
        lambda job: job.secure.scheme == "secagg" and _has_decryptor(job),
        "secure.key-holder = decryptor with secure.scheme = secagg",
        "masks cancel in the sum, and nobody holds a key that could decrypt it",
        "leave it out, or secure.scheme = bfv",
    ),
    Refusal(
        lambda job: (
            job.secure.scheme in HE
            and job.secure.threat == "malicious"
            and job.secure.key_holder == "clients"
        ),
        "secure.threat = malicious with secure.key-holder = clients",
        "every node has the key, and none can tell which ciphertexts the server added",
        "secure.key-holder = decryptor, which then adds the signed frames itself",
    ),
    Refusal(
        lambda job: bool(job.secure.layers) and job.compression.codec != "none",
        "secure.layers with compression.codec",
        "the patterns are of the model's arrays, and a codec has mixed them",
        "secure.layers empty (everything is encrypted), or compression.codec = none",
    ),
    Refusal(
        lambda job: job.secure.min_cohort > job.secure.max_cohort,
        "secure.min-cohort above secure.max-cohort",
        "no number of nodes would be allowed",
        "raise secure.max-cohort",
    ),
    Refusal(
        lambda job: (
            job.secure.on and job.secure.min_cohort < LEAST + job.secure.colluders
        ),
        "secure.min-cohort with so many secure.colluders",
        "they subtract their own updates and noise from a sum, and fewer than three "
        "honest nodes would be left in it",
        "secure.min-cohort of at least 3 + secure.colluders",
    ),
    Refusal(
        _asks_too_few,
        "round.min-nodes times round.fraction below secure.min-cohort",
        "a round of so few nodes (a decryptor is none of them) has no sum",
        "raise round.min-nodes (or leave it out: then as many are waited for as a sum "
        "needs) or round.fraction, or lower secure.min-cohort",
    ),
    Refusal(
        _asks_too_many,
        "secure.max-cohort below the nodes of a sum",
        "round.min-nodes times round.fraction, or the largest group, is more than a "
        "sum can have",
        "raise secure.max-cohort, or lower round.fraction or secure.group-size",
    ),
    Refusal(
        _stops_too_early,
        "round.quorum with so few replies under a secure sum",
        "those that answered could not open their sum: at least secure.min-cohort, and "
        "with secagg half of the nodes, or more than two thirds against a "
        "malicious server",
        "raise round.quorum (a lower round.deadline bounds the wait)",
    ),
    Refusal(
        _leaves_too_few_groups,
        "round.quorum with so few whole groups",
        "a round may end with a few replies missing in each group, so that no group, "
        "or no more than twice robust.f, has the nodes that its sum needs (at least "
        "secure.min-cohort)",
        "raise round.quorum, or secure.group-size above secure.min-cohort",
    ),
    Refusal(
        lambda job: job.secure.on and job.run.checkpoint_every > 1,
        "run.checkpoint-every above 1 with secure.scheme",
        "a resumed run would repeat rounds whose sums were opened, and the difference "
        "of two sums of one model may be a single update",
        "run.checkpoint-every = 1",
    ),
)
