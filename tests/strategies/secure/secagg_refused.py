"""One unsound job for every row of ``strategies/secure/secagg_refusals.py``."""

from __future__ import annotations

SECAGG = {"secure.scheme": "secagg"}

# Start of the refusal's line -> settings of a job that it must refuse.
REFUSED: dict[str, dict[str, object]] = {
    "secure.layers with secure.scheme = secagg": {**SECAGG, "secure.layers": "fc*"},
    "secure.max-cohort with secure.scheme = secagg": {
        **SECAGG,
        "secure.max-cohort": 1001,
    },
    "secure.colluders with secure.scheme = secagg": {
        **SECAGG,
        "secure.min-cohort": 8,
        "secure.colluders": 4,
    },
}
