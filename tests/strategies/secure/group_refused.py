"""One unsound job for every row of ``strategies/secure/group_refusals.py``."""

from __future__ import annotations

GROUPED = {
    "secure.scheme": "secagg",
    "secure.group-size": 3,
    "robust.rule": "wfagg",
    "round.min-nodes": 30,
}

# Start of the refusal's line -> settings of a job that it must refuse.
REFUSED: dict[str, dict[str, object]] = {
    "secure.group-size below 3": {**GROUPED, "secure.group-size": 2},
    "secure.regroup without secure.group-size": {
        "secure.scheme": "secagg",
        "secure.regroup": True,
    },
    "secure.group-size with more attackers": {
        **GROUPED,
        "round.min-nodes": 20,
        "robust.f": 4,
    },
    "secure.group-size below secure.min-cohort": {**GROUPED, "secure.min-cohort": 4},
    "secure.group-size with round.fraction": {**GROUPED, "round.fraction": 0.5},
    "secure.group-size with robust.rule = mean": {**GROUPED, "robust.rule": "mean"},
    "secure.group-size with robust.rule = wfagg-paper": {
        **GROUPED,
        "robust.rule": "wfagg-paper",
    },
    "anomaly.quarantine with secure": {**GROUPED, "anomaly.quarantine": 5},
}
