"""Which codec each node sends with: by the error that the user accepts and its speed.

What can be measured: the server sees when a reply arrives, the node says how long it
worked on it. The rest of the time is transfer in both directions, waiting in queues,
polling and the start of a process, so ``bytes / rest`` never exceeds the true speed and
the choice errs towards smaller messages. In a simulation nodes wait for each other and
there is no network: nothing is measured there, and only the error decides.

What a codec loses is known from theory (EDEN, a bound for q8) or from the node's last
reply with it; before the first one, from Gaussian values, of which the largest hold
less of the length than of most updates.

A node that lies about its time or error changes its own codec only, and only within
:data:`RUNGS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy.special import ndtri

from .codecs import make_codec

__all__ = ["RUNGS", "Adaptive", "Rung", "expected_error"]


@dataclass(frozen=True, order=True)
class Rung:
    """A codec with its ratio."""

    codec: str
    ratio: float = 1.0

    def __str__(self) -> str:
        return f"{self.codec} {self.ratio:g}" if self.ratio < 1 else self.codec


RUNGS = (
    Rung("q8"),
    Rung("eden-2"),
    Rung("eden-1"),
    *(Rung("topk-q8", ratio) for ratio in (0.3, 0.1, 0.03, 0.01)),
)
# What is told of a node is finite, whatever it says.
MOST_ERROR, MOST_SPEED = 1e6, 1e15


def expected_error(rung: Rung, d: int) -> float:
    """Return the expected part of the squared length that a codec loses.

    For the largest of d Gaussian values the integral of x**2 below the threshold t of a
    ratio: ``1 - ratio - 2 t phi(t)``.
    """
    codec = make_codec(rung.codec, rung.ratio)
    if rung.codec == "q8":
        # The codec's own bound is for the worst vector; of Gaussian values the largest
        # of 4096 is about 3.6 standard deviations, and a step's variance at most 1/6.
        return (3.6 / 127) ** 2 / 6
    if (known := codec.predicted_error(d)) is not None:
        return known
    # Not scipy.stats: importing it takes every process of a deployed node long.
    threshold = -float(ndtri(rung.ratio / 2))
    density = math.exp(-(threshold**2) / 2) / math.sqrt(2 * math.pi)
    return 1 - rung.ratio - 2 * threshold * density


@dataclass
class Standing:
    """What is known of a node: its codec, its errors by codec, its speed."""

    rung: Rung | None
    errors: dict[str, float]
    speed: float  # bytes a second, at least; NaN: not measured


class Adaptive:
    """Chooses a codec for every node and round.

    Parameters
    ----------
    tolerance : float
        Accepted part of the squared length that is lost, in (0, 1].
    target_seconds : float
        Time that a transfer may take; 0: no matter.

    Notes
    -----
    Of the codecs within the tolerance: with a target and a measured speed, the most
    exact one that arrives in time; else the smallest. If none is within the tolerance,
    the most exact of all.
    """

    def __init__(self, tolerance: float, target_seconds: float) -> None:
        self._tolerance, self._target = tolerance, target_seconds
        self._nodes: dict[str, Standing] = {}

    def choose(self, node: str, d: int) -> tuple[Rung, dict[str, Any] | None]:
        """Return a node's codec, and what to tell if it is another one than before."""
        standing = self._of(node)
        errors = {r: standing.errors.get(str(r), expected_error(r, d)) for r in RUNGS}
        sizes = {r: make_codec(r.codec, r.ratio).predicted_bytes(d) for r in RUNGS}
        exact = min(RUNGS, key=lambda r: errors[r])
        good = [r for r in RUNGS if errors[r] <= self._tolerance] or [exact]
        chosen = min(good, key=lambda r: sizes[r])
        if self._target and not math.isnan(standing.speed):
            limit = standing.speed * self._target
            chosen = min(
                (r for r in good if sizes[r] <= limit),
                key=lambda r: errors[r],
                default=chosen,
            )
        if chosen == standing.rung:
            return chosen, None
        standing.rung = chosen
        told = {"codec": chosen.codec, "ratio": chosen.ratio}
        told["bytes"] = round(sizes[chosen])
        told["error"] = float(f"{errors[chosen]:.4g}")
        if not math.isnan(standing.speed):
            told["speed"] = round(standing.speed)
        return chosen, told

    def learn(self, node: str, error: float, count: int, rest: float | None) -> None:
        """Note a reply: its error (NaN: unknown), bytes and seconds of transfer."""
        standing = self._of(node)
        if standing.rung is not None and not math.isnan(error):
            standing.errors[str(standing.rung)] = min(max(error, 0.0), MOST_ERROR)
        if rest is not None and rest > 0:
            standing.speed = min(count / rest, MOST_SPEED)

    def _of(self, node: str) -> Standing:
        return self._nodes.setdefault(node, Standing(None, {}, math.nan))

    def state(self) -> dict[str, Any]:
        """Return what is known of every node."""
        return {
            node: {
                "rung": s.rung and [s.rung.codec, s.rung.ratio],
                "errors": s.errors,
                "speed": None if math.isnan(s.speed) else s.speed,
            }
            for node, s in self._nodes.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._nodes = {
            node: Standing(
                s["rung"] and Rung(*s["rung"]),
                dict(s["errors"]),
                math.nan if s["speed"] is None else float(s["speed"]),
            )
            for node, s in state.items()
        }
