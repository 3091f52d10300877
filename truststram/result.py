"""What a run returns: a projection of its events, equal to ``report.json``."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import events
from .defence import Defence
from .errors import CheckpointError
from .events import Event

__all__ = ["Metrics", "RoundReport", "RunResult", "better", "is_lower_better"]

# What every event has.
CHAIN = {"seq", "time", "kind", "prev", "hash"}

# None stands for NaN or infinity, which JSON does not have.
Metrics = dict[str, float | None]


def is_lower_better(metric: str) -> bool:
    """Return whether a smaller value of ``metric`` is the better one."""
    return metric == "loss" or metric.endswith("-loss")


def better(metric: str, new: float, old: float | None) -> bool:
    """Return whether ``new`` improves on ``old`` (None: nothing yet)."""
    if old is None:
        return True
    return new < old if is_lower_better(metric) else new > old


@dataclass(frozen=True)
class RoundReport:
    """One finished round.

    Attributes
    ----------
    round : int
        From 1.
    metrics : dict
        Evaluation of the model after this round: by the server on its test data, or
        the clients' average weighted by examples. Names that the clients measured
        carry the prefix ``client-`` when both evaluate. None: not a finite number.
    train_metrics : dict
        Average of what clients reported from training.
    cohort, replies, rejected, lost, late : int
        Nodes asked to train; valid replies; replies dropped by a check; nodes that did
        not answer in time; answers to earlier rounds that came now and were not used.
    codes : dict
        Reason code -> number of rejected replies (train and evaluate).
    bytes_up, bytes_down : int
        Payload bytes received from and sent to nodes in both phases: array data, record
        values and their names; without Flower's framing.
    saved_up, saved_down : int
        How many bytes more that would have been without compression.
    seconds : float
        Wall time of the round.
    skipped : bool
        No valid training reply, or no privacy budget for one: the model was kept.
    """

    round: int
    metrics: Metrics = field(default_factory=dict)
    train_metrics: Metrics = field(default_factory=dict)
    cohort: int = 0
    replies: int = 0
    rejected: int = 0
    lost: int = 0
    late: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    saved_up: int = 0
    saved_down: int = 0
    seconds: float = 0.0
    skipped: bool = False

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> RoundReport:
        """Build from an event or a JSON object; other fields are ignored."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in names})


@dataclass(frozen=True)
class RunResult:
    """A run as its events tell it.

    Attributes
    ----------
    id : str
        Name of the run and of its folder.
    dir : Path
        The folder: events.jsonl, report.json, model.safetensors, curves.png.
    status : str
        ``completed``, ``failed`` or ``stopped``; ``interrupted`` if there is no end.
    reason : str
        Why it failed or stopped early; empty otherwise.
    job : dict
        The flat configuration.
    rounds : tuple of RoundReport
        In order; a round that was repeated after a resume appears once, as it counted.
    best : dict
        ``{"round": r, "metric": name, "value": v}`` or empty.
    parameters, model_bytes, nodes : int
        Size of the model and of the federation.
    seconds : float
        Wall time of the last (re)start to its end.
    defence : dict
        What was done about nodes that misbehave (:meth:`.defence.Defence.result`);
        empty if nothing was.
    privacy : dict
        The plan that was announced; ``spent``, the epsilon that the ledger counts so
        far; and ``guaranteed``, the one that may be claimed: the whole budget if the
        noise followed the outputs, or if the run ended before the last planned round,
        which may have been because of them. Empty without differential privacy by the
        server.
    final : dict
        Metrics of the final model where that is not the last round's (an average).
    computed : dict
        Of a computation with TensorFlow Federated: how many ``silos``, and the
        ``result``, numbers and lists by name. Empty for a training.
    offered : dict
        What it took to offer a plan of TensorFlow Federated to nodes before they took
        part: ``bytes_down`` and ``bytes_up``, of all rounds and resumes. Part of the
        report's totals, not of a round's bytes. Empty without a plan.
    """

    id: str
    dir: Path
    status: str
    reason: str
    job: dict[str, Any]
    rounds: tuple[RoundReport, ...]
    best: dict[str, Any]
    parameters: int
    model_bytes: int
    nodes: int
    seconds: float
    defence: dict[str, Any] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)
    final: Metrics = field(default_factory=dict)
    computed: dict[str, Any] = field(default_factory=dict)
    offered: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the run completed."""
        return self.status == "completed"

    @property
    def metrics(self) -> Metrics:
        """Metrics of the final model, or of the last round that was evaluated."""
        return self.final or next(
            (r.metrics for r in reversed(self.rounds) if r.metrics), {}
        )

    @classmethod
    def read(cls, folder: Path) -> RunResult:
        """Build the result of the run in ``folder`` from its verified events."""
        path = folder / "events.jsonl"
        if not path.exists():
            raise CheckpointError(f"{folder} holds no events.jsonl: not a run.")
        return cls.of(events.read(path), folder)

    @classmethod
    def of(cls, log: Iterable[Event], folder: Path) -> RunResult:
        """Project events onto a result."""
        start: Event = {}
        end: Event = {}
        best: Event = {}
        rounds: dict[int, RoundReport] = {}
        defence, privacy, final = Defence(), dict[str, Any](), Metrics()
        computed: dict[str, Any] = {}
        offered: Counter[str] = Counter()
        for event in log:
            defence.add(event)
            match event["kind"]:
                case "run-started":
                    start, end = event, {}
                    resumed_from = event.get("resumed_from", 0)
                    rounds = {r: v for r, v in rounds.items() if r <= resumed_from}
                    best = best if best.get("round", 0) <= resumed_from else {}
                case "round-finished":
                    rounds[event["round"]] = RoundReport.of(event)
                case "best-model":
                    best = {k: event[k] for k in ("round", "metric", "value")}
                case "privacy-plan":
                    privacy = {k: v for k, v in event.items() if k not in CHAIN}
                case "privacy-spent":
                    privacy["guaranteed"] = event["epsilon"]
                    privacy["spent"] = event.get("spent", event["epsilon"])
                case "final-model":
                    final = event["metrics"]
                case "tff-result":
                    computed = {k: event[k] for k in ("silos", "result")}
                case "plan-offered":
                    offered.update({k: event[k] for k in ("bytes_down", "bytes_up")})
                case "run-finished":
                    end = event
        if "spent" in privacy and max(rounds, default=0) < privacy["rounds"]:
            privacy["guaranteed"] = privacy["epsilon"]
        return cls(
            id=folder.name,
            dir=folder,
            status=end.get("status", "interrupted"),
            reason=end.get("reason", "" if end else "the run has no end event"),
            job=dict(start.get("job", {})),
            rounds=tuple(rounds[r] for r in sorted(rounds)),
            best=best,
            parameters=start.get("parameters", 0),
            model_bytes=start.get("model_bytes", 0),
            nodes=start.get("nodes", 0),
            seconds=end.get("seconds", 0.0),
            defence=defence.result(),
            privacy=privacy,
            final=final,
            computed=computed,
            offered=dict(offered),
        )

    def report(self) -> dict[str, Any]:
        """Return the content of ``report.json``."""
        content = dataclasses.asdict(self)
        content["dir"] = str(self.dir)
        content["metrics"] = self.metrics
        for name in ("bytes_up", "bytes_down"):
            moved = sum(getattr(r, name) for r in self.rounds)
            content[name] = moved + self.offered.get(name, 0)
        content["saved_up"] = sum(r.saved_up for r in self.rounds)
        content["saved_down"] = sum(r.saved_down for r in self.rounds)
        content["rejected"] = sum(r.rejected for r in self.rounds)
        return content

    def write(self) -> Path:
        """Write ``report.json`` into the run's folder and return its path."""
        path = self.dir / "report.json"
        path.write_text(json.dumps(self.report(), indent=2) + "\n")
        return path
