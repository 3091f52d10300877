"""One unsound job for every row of ``strategies/secure/refusals.py``."""

from __future__ import annotations

BFV = {"secure.scheme": "bfv"}
CKKS = {"secure.scheme": "ckks"}

# Start of the refusal's line -> settings of a job that it must refuse.
REFUSED: dict[str, dict[str, object]] = {
    "robust.rule with a secure sum": {**BFV, "robust.rule": "wfagg"},
    "anomaly.enabled = on with a secure sum": {**BFV, "anomaly.enabled": "on"},
    "adversary.kind with a secure sum": {
        **CKKS,
        "adversary.kind": "ipm",
        "adversary.fraction": 0.2,
    },
    "privacy by the server with secure": {**BFV, "privacy.mechanism": "gaussian"},
    "round.evaluate = clients with secure": {**BFV, "round.evaluate": "clients"},
    "secure.key-holder = decryptor with secure.scheme = ckks": {
        **CKKS,
        "secure.key-holder": "decryptor",
    },
    "secure.key-holder = decryptor with secure.scheme = secagg": {
        "secure.scheme": "secagg",
        "secure.key-holder": "decryptor",
    },
    "secure.threat = malicious with": {**BFV, "secure.threat": "malicious"},
    "secure.layers with compression": {
        **BFV,
        "secure.layers": "fc*",
        "compression.codec": "randk",
    },
    "secure.min-cohort above": {**BFV, "secure.min-cohort": 200},
    "secure.min-cohort with so many": {
        "secure.scheme": "secagg",
        "secure.min-cohort": 5,
        "secure.colluders": 3,
    },
    "round.min-nodes times round.fraction": {
        **BFV,
        "round.min-nodes": 10,
        "round.fraction": 0.1,
    },
    "secure.max-cohort below": {
        **BFV,
        "round.min-nodes": 50,
        "secure.max-cohort": 10,
    },
    "round.quorum with so few": {"secure.scheme": "secagg", "round.quorum": 0.3},
    "round.quorum with so few whole groups": {
        "secure.scheme": "bfv",
        "secure.group-size": 3,
        "robust.rule": "median",
        "round.min-nodes": 30,
        "round.quorum": 0.66,
    },
    "run.checkpoint-every above 1 with secure": {**BFV, "run.checkpoint-every": 2},
}
