"""A plan in words: what its noise means, and the lines that people read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["lines", "verdict"]

# Up to this ratio of noise to signal ... Single rounds may be noisier than they are
# informative: over T rounds that agree, the ratio falls by the root of T.
VERDICTS = (
    (1.0, "good: the noise of a {unit} is not longer than its sum can be"),
    (4.0, "bearable: expect to lose some accuracy, averaged over many {unit}s"),
    (15.0, "poor: only very many {unit}s that agree can be heard above the noise"),
    (math.inf, "hopeless"),
)
REMEDY = "use more nodes per round, fewer rounds, a smaller model or a larger epsilon"


def verdict(ratio: float, remedy: str = REMEDY, unit: str = "round") -> str:
    """Return what a noise-to-signal ratio means.

    Parameters
    ----------
    ratio : float
    remedy : str
        What to do if it is hopeless.
    unit : str
        What has noise: a round or a step.
    """
    text = next(text for limit, text in VERDICTS if ratio <= limit).format(unit=unit)
    if ratio <= VERDICTS[-2][0]:
        return f"{text} (noise / signal {ratio:.2g})"
    return f"{text}: the noise is {ratio:,.0f} times the longest possible sum; {remedy}"


def lines(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the plan as text, without its table."""
    size = f"{content['parameters']:,} values"
    yield f"{content['task']}: {size}, {content['nodes']:,} nodes"
    yield content["guarantee"]
    yield f"Noise: {content['verdict']}."
    yield content["advice"]
    yield from _schedule_line(content)
    if found := content.get("groups"):
        yield (
            f"Groups: {found['count']} sums. The noise in the mean of one is "
            f"{found['noise-to-signal']:.2g} times the longest mean, which "
            f"{found['size-for-1']:,} nodes that all answer would make 1; one sum of "
            f"all nodes would have {found['one-sum']:.2g}."
        )
        if found["warning"]:
            yield found["warning"]
    if told := content.get("evaluation"):
        yield (
            f"Evaluation by the nodes: {told['times']} x epsilon "
            f"{told['epsilon']:.3g}; the noise in the mean accuracy of "
            f"{told['nodes']:,} nodes has a standard deviation of "
            f"{told['error-points']:.2g} points."
        )
    if mixed := content.get("shuffled"):
        yield (
            f"Not in this version: if a party other than the server mixed "
            f"{mixed['replies']:,} replies of honest nodes, one round would cost "
            f"epsilon {mixed['epsilon']:.3g} at delta {mixed['delta']:g} instead of "
            f"{mixed['local-epsilon']:.3g}. Flower's server sees which node sent what, "
            "so nothing above counts on it."
        )


def _schedule_line(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the noise changes over the rounds, if it does."""
    levels = content.get("levels", [])
    if content.get("schedule") == "increasing":
        falls = ", ".join(f"{x['rounds']} x {x['std']:.3g}" for x in levels)
        yield f"Rounds and their noise (std, in clips): {falls}."
    if content.get("schedule") == "on-plateau":
        yield (
            f"The noise starts at {levels[0]['std']:.3g} clips and falls when the "
            "server's public test data show no progress, as far as the budget lasts "
            "for the rounds that are left."
        )
