"""Run a job, in this process or on Flower, and return what came of it.

Both engines run the same ServerApp and ClientApp. The record of a run is its
``events.jsonl``: progress is read from it while the run goes on, the result when it has
ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from . import events, plots
from ._flower_run import run_flower
from ._locate import app_module
from ._logs import quiet
from ._plan import full_job, reserved
from ._processes import terminable
from .errors import CheckpointError, ConfigError, RunError
from .job import Job, Value
from .result import RunResult
from .task import Task
from .tasks import available_tasks, load_task, register_task

__all__ = ["run"]


def run(
    job: Job | Mapping[str, Value] | None = None,
    *,
    engine: Literal["local", "flower"] = "local",
    nodes: int = 10,
    task: Task | type | None = None,
    threads: int = 1,
    progress: bool | None = None,
    dir: Path | str | None = None,
) -> RunResult:
    """Run a federated training job with simulated nodes and wait for its end.

    Parameters
    ----------
    job : Job or mapping, optional
        What to do: a :class:`~truststram.job.Job` or the flat keys that differ from the
        defaults. With ``run.resume`` all other keys come from the interrupted run,
        unless they are given here (of a Job: unless they differ from the default).
    engine : {"local", "flower"}
        ``local`` runs the nodes in this process; ``flower`` starts a Flower simulation
        with its own processes and stops all of them at the end.
    nodes : int
        Number of simulated nodes.
    task : Task or type, optional
        Your model and data, known to this process under the job's ``task.name``. Only
        for the local engine.
    threads : int
        Nodes that train at the same time; only for the local engine, because Flower
        uses all CPU cores.
    progress : bool, optional
        Show progress on standard error. By default only if that is a terminal.
    dir : path, optional
        Folder of all runs; by default the job's ``run.dir``, else ``./runs``.

    Returns
    -------
    RunResult
        The completed run, with the folder of its files in ``dir``.

    Raises
    ------
    ConfigError
        The job cannot run; nothing was started.
    RunError
        The run started and did not complete; the message names the cause, and for
        Flower the log file.
    KeyboardInterrupt
        Ctrl-C or SIGTERM, after everything was stopped and recorded.
    """
    _check(engine, nodes, task, threads)
    job = full_job(job, dir)
    if task is not None:
        register_task(job.task.name, task if isinstance(task, type) else lambda: task)
    _check_job(job, nodes)
    job, folder = reserved(job)
    with terminable(), _recorded(folder), _shown(folder, job.train.rounds, progress):
        if engine == "local":
            from .engine import run_local

            with quiet(logging.WARNING):
                run_local(job, nodes, threads)
        else:
            run_flower(job, nodes, folder)
    result = RunResult.read(folder)
    if not result.ok:
        raise RunError(f"The run {result.status}: {result.reason} See {folder}.")
    return result


def _check(engine: str, nodes: int, task: object, threads: int) -> None:
    """Raise one ConfigError for everything wrong with the arguments."""
    problems = []
    if engine not in ("local", "flower"):
        problems.append(f"engine = {engine}: expected one of local, flower.")
    for name, value in (("nodes", nodes), ("threads", threads)):
        if value < 1:
            problems.append(f"{name} = {value}: expected >= 1.")
    if engine == "flower" and threads > 1:
        problems.append(
            f"threads = {threads}: only for the local engine; Flower's simulation uses "
            "all CPU cores, one for each node at work."
        )
    if engine == "flower" and task is not None:
        problems.append(
            "task: only for the local engine. Flower's nodes are other processes; "
            "there a node's own configuration names the code of a task."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _check_job(job: Job, nodes: int) -> None:
    """Refuse now what the ServerApp would refuse when Flower has started."""
    from .techniques import stack

    stack.check(job)
    if job.tff.plan:
        capabilities = app_module("tff_bridge.capabilities")
        capabilities.check(capabilities.read_for(job.tff.plan), job)
    if job.task.name not in available_tasks():
        load_task(job.task.name)  # says what there is
    least = stack.least_nodes(job)
    if nodes < least == job.round.min_nodes:
        raise ConfigError(
            f"nodes = {nodes}: a round waits for round.min-nodes = {least}. Use more "
            "nodes or lower it."
        )
    if nodes < least:
        raise ConfigError(
            f"nodes = {nodes}: a round of this job needs {least}, so that "
            f"secure.min-cohort = {job.secure.min_cohort} of them are in a sum "
            "(round.fraction, round.quorum, a decryptor and groups count). Use more "
            "nodes."
        )


@contextlib.contextmanager
def _recorded(folder: Path) -> Iterator[None]:
    """Make sure that a run that ends in the block by an exception has an end on file.

    A process that raises or dies cannot always write it; the reports are then made from
    the events here.
    """
    begin = time.monotonic()
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        status = "stopped" if interrupted else "failed"
        reason = "stopped by the user" if interrupted else str(error) or repr(error)
        if not any(folder.iterdir()):
            folder.rmdir()  # nothing started
        else:
            with contextlib.suppress(CheckpointError, OSError):
                _settle(folder, status, reason, time.monotonic() - begin)
            if interrupted:
                error.add_note(f"run.resume = {folder.name} continues the run.")
        raise


def _settle(folder: Path, status: str, reason: str, seconds: float) -> None:
    """Write the end of a run, if it has none, and the files made from its events."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # we failed because another process has this run: not ours to end
        with contextlib.closing(events.EventLog(folder / "events.jsonl")) as log:
            if RunResult.read(folder).status == "interrupted":
                end = {"status": status, "reason": reason, "seconds": round(seconds, 3)}
                log.append("run-finished", **end)
    result = RunResult.read(folder)
    result.write()
    plots.curves(result)


@contextlib.contextmanager
def _shown(folder: Path, rounds: int, progress: bool | None) -> Iterator[None]:
    """Show the run's events on standard error while the block runs."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield
        return
    from .progress import displayed

    with displayed(folder / "events.jsonl", rounds):
        yield
