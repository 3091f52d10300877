"""A finished run, read back for attacks and reports: events, record, model, data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import events
from .._locate import app_module
from ..errors import CheckpointError, ConfigError
from ..events import Event
from ..job import Job
from ..result import RunResult

__all__ = ["AUDIT", "Finished", "attacked", "save"]

# Layers of the server that keep a ledger.
KEEPERS = ("CentralDP", "DistributedDP")

# Where the result of `truststram privacy audit RUN` lies, in the run's folder.
AUDIT = "privacy-audit.json"


@dataclass(frozen=True)
class Finished:
    """What a run left behind.

    Attributes
    ----------
    result : RunResult
    job : Job
    log : list of Event
        With a verified chain.
    ledger : dict or None
        State of the server's ledger in the last whole round record.
    round : int
        Round of that record.
    audit : dict or None
        What the last audit of this run found.
    """

    result: RunResult
    job: Job
    log: list[Event]
    ledger: dict[str, Any] | None
    round: int
    audit: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> Finished:
        """Read the run in ``folder``.

        Raises
        ------
        CheckpointError
            If its events or its round record are damaged.
        """
        log = events.read(folder / "events.jsonl")
        result = RunResult.of(log, folder)
        if not result.job:
            raise CheckpointError(f"{folder} holds a run that never started.")
        damaged: list[str] = []
        latest = app_module("server_app.checkpoint").latest
        record = latest(folder / "rounds", damaged.append)
        if record is None or damaged:
            names = ", ".join(damaged) or "none is there"
            raise CheckpointError(f"No whole record of the last round: {names}.")
        states = {layer["name"]: layer["state"] for layer in record.layers}
        path = folder / AUDIT
        return cls(
            result=result,
            job=Job.of(result.job),
            log=log,
            ledger=next((states[n]["ledger"] for n in KEEPERS if n in states), None),
            round=record.round,
            audit=json.loads(path.read_text()) if path.exists() else None,
        )

    def of_kind(self, kind: str) -> list[Event]:
        """Return the events of one kind."""
        return [event for event in self.log if event["kind"] == kind]


def save(run: Finished, found: Mapping[str, Any]) -> None:
    """Keep what an audit found in the run's folder, for its report."""
    path = run.result.dir / AUDIT
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def attacked(run: Finished) -> dict[str, Any]:
    """Attack the model of a run with what a simulation knows, as JSON values.

    Raises
    ------
    ConfigError
        For a task that these attacks do not understand, or without a final model.
    """
    from ..task import Node
    from ..tasks import load_task
    from . import inversion, membership

    job, nodes = run.job, run.result.nodes
    path = run.result.dir / "model.safetensors"
    if not path.exists():
        raise ConfigError(f"{run.result.dir} has no final model: the run did not end.")
    task = load_task(job.task.name)
    model = task.model(job, seed=0)
    arrays = app_module("server_app.checkpoint").load_model(path)
    model.load_state_dict(arrays.to_torch_state_dict())
    pool = membership.pool_of(task, job, nodes)
    found = membership.attacks(model, task, job, pool)
    data = task.train_data(job, Node("0", 0, nodes, job.data.path or None))
    inverted = inversion.invert(task, job, data, nodes=nodes)
    return {
        "membership": [asdict(a) | {"verdict": a.verdict} for a in found],
        "inversion": asdict(inverted) | {"verdict": inverted.verdict},
    }
