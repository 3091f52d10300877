"""One unsound job for every row of ``strategies/compression/refusals.py``."""

from __future__ import annotations

# Start of the refusal's line -> settings of a job that it must refuse.
REFUSED: dict[str, dict[str, object]] = {
    "a setting of compression that": {
        "compression.codec": "q8",
        "compression.ratio": 0.5,
    },
    "compression.codec with secure.scheme": {
        "compression.codec": "topk-q8",
        "secure.scheme": "bfv",
    },
    "compression.downlink with secure.scheme": {
        "compression.downlink": "q8",
        "secure.scheme": "bfv",
    },
    "compression.codec = adaptive with privacy": {
        "compression.codec": "adaptive",
        "privacy.mechanism": "gaussian",
    },
}
