"""What a run starts from: the full job, and the folder reserved for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from . import events
from ._locate import app_module
from .errors import ConfigError
from .job import Job, Value
from .result import RunResult

__all__ = ["full_job", "reserved"]

RUNS = "runs"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def full_job(given: Job | Mapping[str, Value] | None, folder: Path | str | None) -> Job:
    """Return the job to run: absolute paths, and the old keys of a run to resume.

    Parameters
    ----------
    given : Job, mapping or None
        What the caller asks for; of a Job only what differs from the defaults.
    folder : path or None
        Folder of all runs; by default the job's ``run.dir``, else ``./runs``.

    Raises
    ------
    ConfigError
        For wrong keys, or if the run to resume does not exist or never started.
    """
    if isinstance(given, Job):
        defaults = Job().config()
        given = {k: v for k, v in given.config().items() if v != defaults[k]}
    changes = dict(given or {})
    runs = Path(str(folder or changes.get("run.dir") or RUNS)).absolute()
    changes["run.dir"] = str(runs)
    # The run's processes have other working directories.
    for name in ("data.path", "tff.plan"):
        if isinstance(path := changes.get(name), str) and path:
            changes[name] = str(Path(path).absolute())
    if old := changes.get("run.resume"):
        changes = _stored(runs, str(old), changes) | changes | {"run.id": old}
    if plan := changes.get("tff.plan"):
        capabilities = app_module("tff_bridge.capabilities")
        changes = capabilities.compiled_settings(str(plan)) | changes
    return Job.of(changes)


def _stored(runs: Path, old: str, changes: Mapping[str, Value]) -> dict[str, Value]:
    """Return the keys with which the run ``old`` was started."""
    if changes.get("run.id", old) != old:
        raise ConfigError("run.id and run.resume name different runs: give one.")
    folder = runs / _checked_id("run.resume", old)
    path = folder / "events.jsonl"
    if not path.exists():
        raise ConfigError(f"run.resume = {old}: there is no such run in {runs}.")
    # Not verified here: a line that a crash cut off is for the ServerApp to mend.
    stored = RunResult.of(events.follow(path, lambda: False), folder).job
    if not stored:
        raise ConfigError(f"run.resume = {old}: it never started. Start a new run.")
    return stored


def reserved(job: Job) -> tuple[Job, Path]:
    """Return the job with its id, and the run's folder, which exists.

    Raises
    ------
    ConfigError
        If the job's id is not a plain name, the folder holds a run already or cannot be
        made.
    """
    try:
        return _reserved(job)
    except OSError as error:
        raise ConfigError(
            f"run.dir = {job.run.dir}: the folder cannot be written: {error.strerror}."
        ) from error


def _reserved(job: Job) -> tuple[Job, Path]:
    runs = Path(job.run.dir)
    if job.run.resume:
        return job, runs / job.run.id
    if job.run.id:
        folder = runs / _checked_id("run.id", job.run.id)
        if (folder / "events.jsonl").exists():
            raise ConfigError(
                f"run.id = {job.run.id}: {folder} holds a run already. "
                "Continue it with run.resume or choose another id."
            )
        folder.mkdir(parents=True, exist_ok=True)
        return job, folder
    folder = _new_folder(runs, job.task.name)
    return job.replace({"run.id": folder.name}), folder


def _new_folder(runs: Path, task: str) -> Path:
    task = re.sub(r"[^A-Za-z0-9._-]+", "-", task)[:64]
    first = f"{datetime.now():%Y%m%d-%H%M%S}-{task}"
    folder, number = runs / first, 1
    runs.mkdir(parents=True, exist_ok=True)
    # Making the folder reserves the id: two runs may start in the same second.
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = runs / f"{first}-{number}"


def _checked_id(key: str, value: str) -> str:
    if not _ID.fullmatch(value):
        raise ConfigError(
            f"{key} = {value}: expected the name of a folder: letters, digits, '.', "
            "'_', '-', at most 100."
        )
    return value
