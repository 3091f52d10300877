"""What Flower says on standard error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet(least: int) -> Iterator[None]:
    """Keep Flower's remarks on every round to itself, below the level ``least``."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(least)
    try:
        yield
    finally:
        logger.setLevel(before)
