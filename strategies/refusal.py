"""What a refused combination of settings is: see :mod:`.refusals` for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from truststram.job import Job

__all__ = ["Refusal"]


@dataclass(frozen=True)
class Refusal:
    """A combination that does not run: what, why, and what to choose instead."""

    applies: Callable[[Job], bool]
    what: str
    why: str
    instead: str

    def line(self) -> str:
        """Return the error line."""
        return f"{self.what} is refused: {self.why}. Instead: {self.instead}."
