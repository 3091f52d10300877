"""Which settings do not go together with compression, and why."""

from __future__ import annotations

from ..refusal import Refusal

__all__ = ["COMPRESSION"]

COMPRESSION: tuple[Refusal, ...] = ()
