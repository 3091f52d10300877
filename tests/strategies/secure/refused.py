"""One unsound job for every row of ``strategies/secure/refusals.py``."""

from __future__ import annotations

# Start of the refusal's line -> settings of a job that it must refuse.
REFUSED: dict[str, dict[str, object]] = {}
