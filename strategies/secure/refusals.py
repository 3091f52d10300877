"""Which settings do not go together with secure sums, and why.

Not refused, because it is sound:

- Any server optimizer: it sees the mean, as it always does.
- Noise by the nodes: it is in the update before that is encrypted.
- A linear codec of compression: nodes add the same coordinates.
- Nodes that drop out, ``round.quorum`` below 1: the sum is of those that answered.
"""

from __future__ import annotations

from truststram.job import Job

from ..refusal import Refusal

__all__ = ["SECURE"]

HE = ("ckks", "bfv")
# What malicious nodes do by themselves; the other attacks are made from all updates.
OWN_ATTACKS = ("label-flip", "backdoor")


def _of_all(job: Job) -> bool:
    """Return whether there is one sum of all nodes."""
    return job.secure.on and job.secure.group_size == 0


def _has_decryptor(job: Job) -> bool:
    return job.secure.key_holder == "decryptor"


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
)
