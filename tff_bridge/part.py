"""One program of a plan, as far as training, evaluation and computations are alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from truststram.errors import ConfigError

from .manifest import Leaf, Program
from .plan import Plan

__all__ = ["Part"]


@dataclass(frozen=True)
class Part(ABC):
    """A program of a plan that can be run over Flower; make it with :meth:`of`.

    Attributes
    ----------
    plan : Plan
    name : str
        Of the program in the plan.
    """

    name: ClassVar[str]
    plan: Plan

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the program of ``plan``.

        Raises
        ------
        ConfigError
            One line for each reason why it cannot be run.
        """
        if reasons := cls.obstacles(plan):
            raise ConfigError("\n".join(f"tff.plan: {reason}" for reason in reasons))
        return cls(plan)

    @staticmethod
    @abstractmethod
    def obstacles(plan: Plan) -> list[str]:
        """Return why the program cannot be run over Flower; empty if it can."""

    @property
    def program(self) -> Program:
        """Its pieces."""
        return self.plan.programs[self.name]

    @property
    def prepared(self) -> tuple[Leaf, ...]:
        """What every silo is sent: what ``prepare`` returns."""
        return self.program.pieces["prepare"].outputs

    @property
    def element(self) -> tuple[Leaf, ...]:
        """The components of a batch, x and y; their first size varies."""
        return self.program.pieces["work"].inputs[0].elements

    @property
    def batch_size(self) -> int:
        """Rows that ``work`` is given at a time."""
        return int(self.plan.job["train.batch-size"])
