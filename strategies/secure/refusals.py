"""Which settings do not go together with secure sums, and why."""

from __future__ import annotations

from ..refusal import Refusal

__all__ = ["SECURE"]

SECURE: tuple[Refusal, ...] = ()
