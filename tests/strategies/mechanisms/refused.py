"""One unsound job for every row of ``mechanisms/distributed_refusals.py``."""

from __future__ import annotations

SHARES = {
    "privacy.mechanism": "skellam",
    "privacy.trust": "distributed",
    "secure.scheme": "secagg",
}

# Start of the refusal's line -> settings of a job that it must refuse.
REFUSED: dict[str, dict[str, object]] = {
    "privacy.trust = distributed without a secure": {
        **SHARES,
        "secure.scheme": "none",
    },
    "privacy.trust = distributed with secure.scheme": {
        **SHARES,
        "secure.scheme": "bfv",
    },
    "privacy.trust = distributed with other noise": {
        **SHARES,
        "privacy.mechanism": "gaussian",
    },
    "privacy.mechanism = skellam without": {"privacy.mechanism": "skellam"},
    "privacy.trust = distributed in groups without secure.colluders": {
        **SHARES,
        "secure.group-size": 4,
        "robust.rule": "wfagg",
    },
    "privacy.trust = distributed with robust.f above secure.colluders": {
        **SHARES,
        "secure.group-size": 4,
        "secure.min-cohort": 4,
        "secure.colluders": 1,
        "robust.rule": "wfagg",
        "robust.f": 2,
    },
    "secure.clip with privacy.trust": {**SHARES, "secure.clip": 0.5},
    "privacy.trust = distributed with privacy.evaluate": {
        **SHARES,
        "privacy.evaluate-epsilon": 1.0,
    },
    "privacy.trust = distributed with compression": {
        **SHARES,
        "compression.codec": "randk",
    },
}
