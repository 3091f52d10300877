"""The guarantee in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .events import UNBOUNDED, Release
from .pld import by_rdp
from .skellam import THEOREM

if TYPE_CHECKING:
    from .ledger import Ledger

__all__ = ["TRUST", "UNITS", "paragraph", "phrase"]

TRUST = {
    "central": "the server sees single updates and adds the noise",
    "local": "each unit adds its own noise before anything leaves it",
    "distributed": "units add shares of the noise and the server sees only sums",
}
UNITS = ("client", "example")


def paragraph(ledger: Ledger) -> str:
    """Return unit, relation, epsilon, delta, releases, sampling and trust model."""
    neighbour = {
        "add-remove": f"whether any one {ledger.unit} takes part at all",
        "replace": f"what any one {ledger.unit} contributes",
    }[ledger.relation]
    spent = f"epsilon = {ledger.spent():.4g} at delta = {ledger.delta:g}"
    if math.isfinite(ledger.epsilon):
        spent = f"{spent}, of a budget of {ledger.epsilon:g}"
    made = "; ".join(phrase(r, n) for r, n in ledger.releases.items())
    how = "exact composition (privacy loss distributions) of a fixed schedule"
    if by_rdp(ledger.releases):
        how = f"composition of Rényi divergences ({THEOREM}) of a fixed schedule"
    if ledger.adaptive:
        how = (
            "a Rényi filter, because noise may depend on earlier outputs: what may be "
            "claimed is the budget"
        )
    return (
        f"Unit: {ledger.unit}. Relation: {ledger.relation} (the outputs hardly tell "
        f"{neighbour}). Spent: {spent}; computed by {how}. Releases: "
        f"{made or 'none'}. Trust model: {ledger.trust} ({TRUST[ledger.trust]})."
    )


def phrase(release: Release, count: int) -> str:
    """Return equal releases in words.

    Examples
    --------
    >>> phrase(Release("staircase-ball", epsilon0=1.0, dimension=3), 2)
    '2 x staircase-ball of 3 coordinates (epsilon0 1; everyone takes part)'
    """
    noise = f"scale {release.scale:.4g} clips"
    if release.mechanism in UNBOUNDED:
        noise = f"noise multiplier {release.scale:.4g}"
    if release.epsilon0:
        noise = f"epsilon0 {release.epsilon0:.4g}"
    size = f" of {release.dimension} coordinates" if release.dimension > 1 else ""
    return f"{count} x {release.mechanism}{size} ({noise}; {release.sampling})"
