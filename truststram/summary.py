"""What a person sees of a run that has ended: a table, and what matters below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .defence import lines
from .progress import moved
from .result import RoundReport, RunResult

__all__ = ["summary"]

MOST_ROWS = 30
MOST_METRICS = 6
MOST_VALUES = 8


def summary(result: RunResult) -> RenderableType:
    """Return the table of a run with what matters below it: best, bytes, files."""
    if not result.rounds:
        return Group(Text("No round was finished."), *_facts(result))
    shown = _selection(result)
    names = list(dict.fromkeys(name for r in result.rounds for name in r.metrics))
    names, hidden = names[:MOST_METRICS], names[MOST_METRICS:]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ["round", *names, "up", "down", "replies", "rejected", "seconds"]:
        table.add_column(escape(title), justify="right", no_wrap=True)
    for report in shown:
        table.add_row(
            str(report.round),
            *(_number(report.metrics.get(name)) for name in names),
            moved(report.bytes_up, report.saved_up),
            moved(report.bytes_down, report.saved_down),
            f"{report.replies}/{report.cohort}" + ("*" if report.skipped else ""),
            str(report.rejected),
            f"{report.seconds:.1f}",
        )
    notes = []
    if len(shown) < len(result.rounds):
        notes.append(f"{len(shown)} of {len(result.rounds)} rounds shown.")
    if hidden:
        notes.append(f"More metrics in report.json: {', '.join(hidden)}.")
    if any(report.skipped for report in shown):
        notes.append("* no valid reply: the model was kept.")
    return Group(table, *map(Text, notes), *_facts(result))


def _selection(result: RunResult) -> list[RoundReport]:
    """Return at most MOST_ROWS rounds: the first, last, best and some between."""
    rounds = result.rounds
    if len(rounds) <= MOST_ROWS:
        return list(rounds)
    # One row is kept for the best round.
    last, steps = len(rounds) - 1, MOST_ROWS - 2
    chosen = {round(step * last / steps) for step in range(steps + 1)}
    best = result.best.get("round")
    return [r for i, r in enumerate(rounds) if i in chosen or r.round == best]


def _number(value: float | None) -> str:
    return (
        "" if value is None else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"
    )


def _facts(result: RunResult) -> Iterator[Text]:
    """Yield the lines below the table."""
    if result.best:
        best = f"{result.best['metric']} {_number(result.best['value'])}"
        yield Text(f"Best: {best} in round {result.best['round']}")
    if result.final:
        shown = "  ".join(f"{k} {_number(v)}" for k, v in result.final.items())
        yield Text(f"Final model (average of the last rounds): {shown}")
    yield from _computed(result)
    yield from _privacy(result)
    up, down, saved_up, saved_down = (
        sum(getattr(report, name) for report in result.rounds)
        for name in ("bytes_up", "bytes_down", "saved_up", "saved_down")
    )
    sent, got = moved(up, saved_up), moved(down, saved_down)
    yield Text(f"Sent by nodes: {sent}, to nodes: {got}")
    if result.offered:
        offered = moved(result.offered["bytes_down"], 0)
        yield Text(f"Sent to nodes before the rounds (the plan): {offered}")
    codes: dict[str, int] = {}
    for report in result.rounds:
        for code, count in report.codes.items():
            codes[code] = codes.get(code, 0) + count
    if codes:
        counts = ", ".join(f"{code} {n}" for code, n in sorted(codes.items()))
        yield Text(f"Rejected replies: {counts}")
    yield from map(Text, lines(result.defence))
    reason = f": {result.reason}" if result.reason else ""
    yield Text(f"Status: {result.status}{reason} ({result.seconds:.1f} s)")
    yield Text(f"Files: {result.dir}")


def _computed(result: RunResult) -> Iterator[Text]:
    """Yield the result of a computation; of long lists the first values."""
    if not result.computed:
        return
    yield Text(f"Result of {result.computed['silos']} silos:")
    for name, values in result.computed["result"].items():
        yield Text(f"  {name}: {_values(values)}")


def _values(value: Any) -> str:
    """Return a number, or the first entries of a list and how many there are."""
    if isinstance(value, list):
        more = f", ... {len(value)} in all" if len(value) > MOST_VALUES else ""
        return f"[{', '.join(map(_values, value[:MOST_VALUES]))}{more}]"
    if value is None:
        return "not finite"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _privacy(result: RunResult) -> Iterator[Text]:
    """Yield what was promised and spent."""
    plan = result.privacy
    if not plan:
        return
    yield Text(
        f"Privacy: epsilon {plan.get('guaranteed', 0.0):.4g} guaranteed "
        f"({plan.get('spent', 0.0):.4g} of {plan['epsilon']:g} spent), "
        f"delta {plan['delta']:g}; unit {plan['unit']}, {plan['relation']}, "
        f"{plan['trust']} {plan['mechanism']} noise; {plan['sampling']}"
    )
    if not plan["secure-noise"]:
        yield Text("NOT PRIVATE: privacy.insecure repeats the noise. For tests only.")
