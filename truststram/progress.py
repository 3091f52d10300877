"""What a person sees of a run while it goes on; when it has ended: :mod:`.summary`.

Everything here reads events; nothing here has an influence on a run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from .defence import listed
from .events import Event, follow
from .result import RoundReport

__all__ = ["alert_line", "displayed", "moved", "round_line", "size"]


def size(count: float) -> str:
    """Return a number of bytes for people: ``1.2 MB`` (1 MB = 1,000,000 bytes)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.95 or (unit == "B" and count < 1000):
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def moved(count: int, saved: int) -> str:
    """Return bytes on the wire, and how many times less that is by compression.

    Examples
    --------
    >>> moved(52_000, 0)
    '52.0 kB'
    >>> moved(52_000, 1_248_000)
    '52.0 kB (25.0x less)'
    """
    less = f" ({(count + saved) / count:.1f}x less)" if saved > 0 and count else ""
    return size(count) + less


@contextlib.contextmanager
def displayed(
    path: Path, rounds: int, console: Console | None = None
) -> Iterator[None]:
    """Show what is written to the events in ``path`` while the block runs.

    A terminal gets a bar with the time left, anything else one line for each round;
    both get a line for every alert and for what compression is expected to do.

    Parameters
    ----------
    path : Path
        The run's ``events.jsonl``, which need not exist yet. What it holds already
        (the run was resumed) is not shown again.
    rounds : int
        Rounds of the whole run.
    console : Console, optional
        Where to show it; standard error by default.
    """
    console = console or Console(stderr=True)
    seen = path.read_bytes().count(b"\n") if path.exists() else 0
    done = threading.Event()
    news = islice(follow(path, lambda: not done.is_set()), seen, None)
    show = _show_bar if console.is_terminal else _print_rounds
    thread = threading.Thread(target=show, args=(news, rounds, console), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _print_rounds(news: Iterable[Event], rounds: int, console: Console) -> None:
    rejected: dict[str, Sequence[str]] = {}
    for event in news:
        if line := alert_line(event):
            _print(console, line)
        match event["kind"]:
            case "round-started":
                rejected = {}
            case "update-rejected":
                rejected[event["node"]] = event["evidence"].get("failed", [])
            case "round-finished":
                _print(console, round_line(RoundReport.of(event), rounds, rejected))


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show_bar(news: Iterable[Event], rounds: int, console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        TextColumn("{task.fields[metrics]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=rounds, metrics="")
        for event in news:
            if line := alert_line(event):
                _print(bar.console, line)
            bar.update(task, **_change(event))


def _change(event: Event) -> dict[str, Any]:
    """Return what an event changes in the bar."""
    match event["kind"]:
        case "run-started":
            return {"completed": event.get("resumed_from", 0)}
        case "round-started":
            return {"description": f"round {event['round']}"}
        case "phase-progress":
            heard = f"{event['phase']} {event['replies']}/{event['expected']}"
            return {"description": f"round {event['round']}: {escape(heard)}"}
        case "round-finished":
            report = RoundReport.of(event)
            return {"completed": report.round, "metrics": escape(_metrics(report))}
        case "run-finished":
            return {"description": str(event["status"])}
    return {}


def _metrics(report: RoundReport) -> str:
    return "  ".join(f"{k} {v:.4g}" for k, v in report.metrics.items())


def alert_line(event: Event) -> str:
    """Return an alert, its end, or a plan as one line of text; "" for other events."""
    match event["kind"]:
        case "alert":
            return (
                f"ALERT in round {event['round']}: {event['fraction']:.0%} of nodes "
                f"misbehave or are in quarantine (limit {event['limit']:.0%}): "
                f"{listed(event['nodes'])}; response: {event['response']}"
            )
        case "alert-ended":
            return f"alert ended in round {event['round']} ({event['fraction']:.0%})"
        case "compression-plan":
            return plan_line(event)
        case "secure-plan":
            return secure_line(event)
        case "privacy-plan":
            return str(event.get("warning", ""))
        case "secure-refused":
            return f"secure sum of round {event['round']} refused: {event['detail']}"
    return ""


def secure_line(event: Event) -> str:
    """Return who must collude to break a secure sum, and what is not in it."""
    line = f"secure sum ({event['scheme']}): {event['trust']}"
    if clear := event.get("clear"):
        arrays = listed(event["clear_arrays"])
        part = f"{clear:,} values ({event['clear_fraction']:.1%})"
        line += f" NOT encrypted: {part} of {arrays}."
    return line


def plan_line(event: Event) -> str:
    """Return what compression was expected to do, as one line of text."""
    raw, parts = event["raw"], []
    for way, codec in (("up", "codec"), ("down", "downlink")):
        if (count := event.get(way)) is not None:
            less = f"frames of {size(count)}, {raw / count:.1f}x less"
            parts.append(f"{way} {event[codec]}: {less}")
        elif way == "up" and (values := event.get("values")) is not None:
            share = f"{values:,} of {event['parameters']:,} values"
            parts.append(f"up {event[codec]}: {share} in the secure sum")
        elif event[codec] != "none":
            parts.append(f"{way} {event[codec]}")
    if (error := event.get("error")) is not None:
        parts.append(f"part of an update's squared length that is lost: {error:.2g}")
    about = f"update: {size(raw)}; names and metrics of a message come on top"
    return f"compression expected: {'; '.join(parts)} ({about})"


def round_line(
    report: RoundReport, rounds: int, rejected: Mapping[str, Sequence[str]] = {}
) -> str:
    """Return a finished round as one line of text.

    Parameters
    ----------
    report : RoundReport
    rounds : int
        Rounds of the whole run.
    rejected : mapping
        Nodes that the rule rejected -> names of the filters that they failed, if known.
    """
    named = [f"{n} ({', '.join(f)})" if f else n for n, f in rejected.items()]
    parts = [
        f"round {report.round}/{rounds}",
        _metrics(report),
        f"up {moved(report.bytes_up, report.saved_up)}",
        f"down {moved(report.bytes_down, report.saved_down)}",
        f"replies {report.replies}/{report.cohort}",
        f"rejected {report.rejected}" if report.rejected else "",
        f"rejected by the rule: {listed(named)}" if named else "",
        f"lost {report.lost}" if report.lost else "",
        "no valid reply: model kept" if report.skipped else "",
        f"{report.seconds:.1f} s",
    ]
    return "  ".join(filter(None, parts))
