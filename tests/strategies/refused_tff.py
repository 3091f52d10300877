"""One unsound job for every row of ``strategies/tff.py``."""

from __future__ import annotations

PLAN: dict[str, object] = {"tff.plan": "job.tffplan"}

# Start of the refusal's line -> settings of a job that it must refuse.
REFUSED: dict[str, dict[str, object]] = {
    "server.optimizer, server.lr or server.momentum with": {
        **PLAN,
        "server.momentum": 0.9,
    },
    "privacy.unit = example with tff.plan": {
        **PLAN,
        "privacy.mechanism": "dp-sgd",
        "privacy.unit": "example",
    },
}
