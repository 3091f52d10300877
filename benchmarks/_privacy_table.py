"""The outcomes of ``benchmarks.privacy_accuracy`` as a table in words and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks._privacy_runs import Outcome, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Table", "label"]

GAUSSIAN = "gaussian"


def label(epsilon: float) -> str:
    """Return an epsilon for people."""
    return "none" if math.isinf(epsilon) else f"{epsilon:g}"


class Table:
    """Means over seeds by number of clients and epsilon.

    Parameters
    ----------
    outcomes : sequence of Outcome
    noise : mapping
        For settings, the predicted noise of every mechanism.
    """

    def __init__(
        self, outcomes: Sequence[Outcome], noise: Mapping[Setting, dict[str, float]]
    ) -> None:
        self.outcomes, self.noise = list(outcomes), dict(noise)
        self.federations = sorted({o.setting.clients for o in outcomes})

    def of(
        self, clients: int, epsilon: float, mechanism: str = GAUSSIAN
    ) -> list[Outcome]:
        """Return the outcomes of a cell, one for each seed."""
        wanted = clients, epsilon, mechanism
        return [
            o
            for o in self.outcomes
            if (o.setting.clients, o.setting.epsilon, o.setting.mechanism) == wanted
        ]

    def epsilons(self, clients: int) -> list[float]:
        """Return what was run with Gaussian noise, the smallest first."""
        found = {o.setting.epsilon for o in self.outcomes if self._is(o, clients)}
        return sorted(found)

    def _is(self, outcome: Outcome, clients: int) -> bool:
        setting = outcome.setting
        return (setting.clients, setting.mechanism) == (clients, GAUSSIAN)

    def others(self, clients: int) -> list[Outcome]:
        """Return the outcomes with other noise."""
        return [
            o
            for o in self.outcomes
            if o.setting.clients == clients and not self._is(o, clients)
        ]

    def markdown(self) -> str:
        """Return a table for each federation."""
        parts = []
        for clients in self.federations:
            network = Setting(clients, 1.0).network
            parts.append(
                f"## {clients} clients, {network.name}, {network.size:,} values"
            )
            parts.append(self._accuracies(clients))
            rows = [
                f"| {o.setting.mechanism} | {label(o.setting.epsilon)} | {o.noise:.4g} "
                f"| {o.rate:.3g} | {100 * o.accuracy:.1f} |"
                for o in self.others(clients)
            ]
            if rows:
                head = "| other noise | epsilon | noise, in clips | rate | accuracy % |"
                parts.append("\n".join([head, "|---|--:|--:|--:|--:|", *rows]))
        return "\n\n".join(parts) + "\n"

    def _accuracies(self, clients: int) -> str:
        head = (
            "| epsilon | accuracy % | least | without noise | last round "
            "| AUC examples | AUC clients | epsilon spent | noise, in clips "
            "| rate | other noise |"
        )
        lines = [head, "|" + "--:|" * 10 + "---|"]
        plain = mean(self.of(clients, math.inf), "accuracy")
        for epsilon in self.epsilons(clients):
            found = self.of(clients, epsilon)
            accuracy = 100 * mean(found, "accuracy")
            least = 100 * min(o.accuracy for o in found)
            cells = [
                label(epsilon),
                f"**{accuracy:.1f}**",
                f"{least:.1f}",
                f"{accuracy - 100 * plain:+.1f}",
                f"{100 * mean(found, 'last'):.1f}",
                f"{mean(found, 'examples'):.3f}",
                f"{mean(found, 'members'):.3f}",
                label(max(o.spent for o in found)),
                f"{found[0].noise:.4g}",
                f"{found[0].rate:.3g}",
                self.predictions(clients, epsilon),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def predictions(self, clients: int, epsilon: float) -> str:
        """Return by how much more noise other mechanisms need than Gaussian."""
        for setting, noise in self.noise.items():
            if (setting.clients, setting.epsilon) == (clients, epsilon):
                return ", ".join(
                    f"{name} x {std / noise[GAUSSIAN]:.3g}"
                    for name, std in noise.items()
                    if name != GAUSSIAN
                )
        return ""

    def picture(self, path: Path) -> None:
        """Draw accuracy and attack against epsilon, a line for each federation."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        self._panel(left, ("accuracy",), 100)
        left.set_ylabel("test accuracy (%)")
        left.set_title("What the model learns")
        self._panel(right, ("members", "examples"), 1)
        right.axhline(0.5, color="black", linewidth=1, linestyle=":")
        right.set_ylim(0.45, 0.65)
        right.set_ylabel("area under the curve; 0.5 is guessing")
        right.set_title("What its losses tell about who took part")
        figure.savefig(path, dpi=100)

    def _panel(self, axes: Axes, what: Sequence[str], scale: float) -> None:
        for clients, colour in zip(self.federations, ("C0", "C1", "C2"), strict=False):
            epsilons = self.epsilons(clients)
            name = Setting(clients, 1.0).network.name
            for attribute, style in zip(what, ("-", "--"), strict=False):
                values = [
                    [scale * float(getattr(o, attribute)) for o in self.of(clients, e)]
                    for e in epsilons
                ]
                centre = [float(np.mean(v)) for v in values]
                spread = [
                    [c - min(v) for c, v in zip(centre, values, strict=True)],
                    [max(v) - c for c, v in zip(centre, values, strict=True)],
                ]
                text = f"{clients} clients, {name}"
                text += {"members": ": clients", "examples": ": examples"}.get(
                    attribute, ""
                )
                axes.errorbar(
                    range(len(epsilons)),
                    centre,
                    spread,
                    color=colour,
                    linestyle=style,
                    marker="o",
                    capsize=3,
                    label=text,
                )
            axes.set_xticks(range(len(epsilons)), [label(e) for e in epsilons])
        axes.set_xlabel("epsilon of one client in 100 rounds (delta 1e-5)")
        axes.grid(alpha=0.3)
        axes.legend()


def mean(outcomes: Sequence[Outcome], what: str) -> float:
    """Return the mean of one attribute; NaN if there are no outcomes."""
    found = [float(getattr(o, what)) for o in outcomes]
    return float(np.mean(found)) if found else math.nan
