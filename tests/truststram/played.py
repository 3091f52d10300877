"""The events of a run without the run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from truststram import events
from truststram.job import Job
from truststram.result import RoundReport


def play(job: Job, *, rounds: int = 2, end: str | None = "completed", reason: str = ""):
    """Write the events that a ServerApp would write."""
    folder = Path(job.run.dir) / job.run.id
    log = events.EventLog(folder / "events.jsonl")
    log.append("run-started", job=job.config(), nodes=4, resumed_from=0)
    for number in range(1, rounds + 1):
        log.append("round-finished", **asdict(RoundReport(number, {"loss": 1.0})))
    if end:
        log.append("run-finished", status=end, reason=reason, seconds=1.0)
    log.close()
