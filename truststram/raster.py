"""The panel of ``curves.png`` that shows which nodes misbehaved, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .result import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_nodes", "inches"]

# By a detector, the rule, the guard; where two are true, the later one is drawn.
MARKS = {
    "flagged": "#f2c14e",
    "rejected": "#d1495b",
    "dropped": "#7b2d8b",
    "quarantined": "#444444",
}
EMPTY = "#f1f1f1"
ATTACKER = "#b00020"
MOST_NODES = 200
MOST_LABELS = 40
# A picture has a few hundred columns of pixels: more rounds share them.
MOST_COLUMNS = 400


def inches(result: RunResult) -> float:
    """Return the height of the panel; 0 if there is nothing to show."""
    if not _nodes(result):
        return 0.0
    return 1.2 + min(6.0, 0.16 * len(_nodes(result)))


def draw_nodes(axes: Axes, result: RunResult) -> None:
    """Draw nodes x rounds; in a simulation the attackers' names are marked.

    With more than 200 nodes, those with the most marks are shown. With more than 40,
    only nodes that attack or were in quarantine are named, as many as fit.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    nodes, defence = _nodes(result), result.defence
    rounds = max((r.round for r in result.rounds), default=1)
    grid = _thinned(_grid(result, nodes, rounds))
    shown = len(nodes) < len(defence["nodes"])
    title = f"Nodes ({len(nodes)} of {len(defence['nodes'])})" if shown else "Nodes"
    axes.set_title(title, loc="left")
    axes.imshow(
        grid,
        cmap=ListedColormap([EMPTY, *MARKS.values()]),
        vmin=-0.5,
        vmax=len(MARKS) + 0.5,
        extent=(0.5, rounds + 0.5, len(nodes) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_xlabel("round")
    axes.set_ylabel("node")
    _name(axes, nodes, defence)
    used = [mark for i, mark in enumerate(MARKS) if (grid == i + 1).any()]
    patches = [Patch(color=MARKS[mark], label=mark) for mark in used]
    look: dict[str, Any] = {"frameon": False, "fontsize": "small", "ncols": 4}
    axes.legend(handles=patches, loc="lower right", bbox_to_anchor=(1, 1), **look)


def _nodes(result: RunResult) -> list[str]:
    """Return the nodes to show, in order; none if no node has a mark."""
    defence = result.defence
    marks = {
        name: sum(len(defence[mark].get(name, ())) for mark in MARKS)
        for name in defence.get("nodes", ())
    }
    if not any(marks.values()):
        return []
    worst = set(sorted(marks, key=lambda name: -marks[name])[:MOST_NODES])
    return [name for name in marks if name in worst]


def _grid(result: RunResult, nodes: list[str], rounds: int) -> NDArray[np.int8]:
    """Return the mark of each node in each round, shape (nodes, rounds); 0: none."""
    grid = np.zeros((len(nodes), rounds), np.int8)
    for row, node in enumerate(nodes):
        for value, mark in enumerate(MARKS, start=1):
            for when in result.defence[mark].get(node, ()):
                first, last = when if mark == "quarantined" else (when, when)
                grid[row, first - 1 : min(last, rounds)] = value
    return grid


def _thinned(grid: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return a grid of at most 400 columns that shows the most important marks."""
    width = grid.shape[1]
    if width <= MOST_COLUMNS:
        return grid
    starts = np.linspace(0, width, MOST_COLUMNS, endpoint=False).astype(int)
    thinned: NDArray[np.int8] = np.maximum.reduceat(grid, starts, axis=1)
    return thinned


def _name(axes: Axes, nodes: list[str], defence: dict[str, Any]) -> None:
    """Label the rows; attackers in red with a star."""
    bad = set(defence.get("malicious", ()))
    many = len(nodes) > MOST_LABELS
    apart = len(nodes) / MOST_LABELS
    rows: list[int] = []
    for row, name in enumerate(nodes):
        wanted = not many or name in bad or name in defence["quarantined"]
        if wanted and (not rows or row - rows[-1] >= apart):
            rows.append(row)
    names = [nodes[row] for row in rows]
    labels = [f"{name[:12]} *" if name in bad else name[:12] for name in names]
    axes.set_yticks(rows, labels, fontsize=8 if len(nodes) <= 30 else 6)
    for name, tick in zip(names, axes.get_yticklabels(), strict=True):
        if name in bad:
            tick.set_color(ATTACKER)
    if bad:
        axes.set_ylabel("node (* attacks)")
