"""The picture of a run: ``curves.png``, made from its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .raster import draw_nodes, inches
from .result import RunResult, is_lower_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curves"]

MARKED_ROUNDS = 40
GREY = "0.35"


def curves(result: RunResult) -> Path:
    """Draw a run and return the path of the picture.

    The upper panel has the metrics over rounds (losses on the right axis if there are
    both losses and others), the next one the payload bytes of each round and, if there
    were any, the rejected replies. If nodes were rejected, flagged or in quarantine, a
    third panel shows which ones and when.

    Parameters
    ----------
    result : RunResult
        Its folder gets ``curves.png``; a run without rounds gives empty panels.
    """
    # Not pyplot: its state is global, and we run inside other people's programs.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    heights = [3.5, 3.5, inches(result)]
    panels = 3 if heights[2] else 2
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = {"height_ratios": heights[:panels]}
    upper, lower, *third = figure.subplots(panels, 1, sharex=True, gridspec_kw=ratios)
    figure.suptitle(_plain(f"Run {result.id}: {_headline(result)}"))
    _draw_metrics(upper, result)
    _draw_bytes(lower, result)
    for axes in third:
        lower.set_xlabel("")
        draw_nodes(axes, result)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lower.set_xlim(0.5, max((r.round for r in result.rounds), default=1) + 0.5)
    path = result.dir / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def _headline(result: RunResult) -> str:
    if result.best:
        metric, value, at = (result.best[k] for k in ("metric", "value", "round"))
        return f"{result.status}, best {metric} {value:.4g} in round {at}"
    return f"{result.status}, rounds: {len(result.rounds)}"


def _plain(text: str) -> str:
    """Return ``text`` such that matplotlib sees no formula and no hidden label."""
    return text.lstrip("_").replace("$", r"\$")[:80]


def _style(result: RunResult) -> dict[str, Any]:
    """Return how points are marked: one round alone would be an invisible line."""
    few = len(result.rounds) <= MARKED_ROUNDS
    return {"marker": "o" if few else "", "markersize": 3.5}


def _draw_metrics(axes: Axes, result: RunResult) -> None:
    axes.set_title("Metrics after each round", loc="left")
    names = list(dict.fromkeys(name for r in result.rounds for name in r.metrics))
    if not names:
        _say(axes, "no round was evaluated")
        return
    losses = [name for name in names if is_lower_better(name)]
    scores = [name for name in names if name not in losses]
    right = axes.twinx() if losses and scores else axes
    lines = []
    for index, name in enumerate([*scores, *losses]):
        target, dash = (right, "--") if name in losses else (axes, "-")
        points = [
            (r.round, r.metrics[name]) for r in result.rounds if name in r.metrics
        ]
        x, y = zip(*points, strict=True)
        look = {"color": f"C{index % 10}", "linestyle": dash, **_style(result)}
        lines += target.plot(x, y, label=_plain(name), **look)
    axes.set_ylabel(_plain(", ".join(scores or losses)))
    if right is not axes:
        right.set_ylabel(_plain(", ".join(losses)))
    _legend(axes, lines)


def _draw_bytes(axes: Axes, result: RunResult) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title("Payload of each round", loc="left")
    axes.set_xlabel("round")
    axes.set_ylabel("bytes")
    axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
    if not result.rounds:
        _say(axes, "no round was finished")
        return
    x = [r.round for r in result.rounds]
    look = _style(result)
    lines: list[Any] = [
        *axes.plot(x, [r.bytes_up for r in result.rounds], label="from nodes", **look),
        *axes.plot(x, [r.bytes_down for r in result.rounds], label="to nodes", **look),
    ]
    axes.set_ylim(bottom=0)
    rejected = [r.rejected for r in result.rounds]
    if any(rejected):
        right = axes.twinx()
        right.set_ylabel("rejected replies")
        right.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        lines.append(
            right.bar(x, rejected, color="C3", alpha=0.35, label="rejected replies")
        )
        right.set_ylim(0, 2 * max(rejected))  # the bars stay below the lines
    _legend(axes, lines)


def _legend(axes: Axes, handles: list[Any]) -> None:
    """Put a legend above the panel, where it covers no line."""
    look: dict[str, Any] = {"frameon": False, "fontsize": "small", "ncols": 4}
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), **look)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", color=GREY, transform=axes.transAxes)
