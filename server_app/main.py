"""The ServerApp: read the job, build the stack, run the rounds, write the results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from truststram import __version__
from truststram._flower import is_simulation
from truststram._locate import app_module
from truststram.engine import LocalGrid
from truststram.errors import CheckpointError, RunError, TrustStramError
from truststram.events import EventLog
from truststram.job import Job
from truststram.plots import curves
from truststram.result import RunResult
from truststram.rng import derive_seed
from truststram.task import Task
from truststram.tasks import load_task
from truststram.techniques import refuse_outside_simulation, stack

from . import checkpoint, rounds, state
from .checkpoint import RoundRecord
from .folder import RunFolder
from .nodes import NamedGrid
from .rounds import Evaluate, RoundLoop

if TYPE_CHECKING:
    from tff_bridge.server import PlanRun

__all__ = ["app", "serve"]

app = ServerApp()

# Settings that may differ between a run and its continuation.
MAY_CHANGE = {
    *("train.rounds", "run.resume", "run.id", "run.dir", "run.patience"),
    "privacy.on-exhausted",
}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run config describes; raise if it fails."""
    serve(Job.of(context.run_config), grid)


def serve(job: Job, grid: Grid) -> None:
    """Run ``job`` on the nodes of ``grid`` and write its folder.

    Raises
    ------
    TrustStramError
        Whatever stopped the run; the reason is also its last event.
    """
    refuse_outside_simulation(job.adversary.kind, _is_one_machine(grid))
    stack.check(job)
    task = load_task(job.task.name)
    plan = _plan(job, task)
    strategy = _strategy(job, plan)
    folder = RunFolder(job)
    try:
        damaged: list[str] = []
        record = _start(job, task, folder, damaged, plan)
        if record.layers:
            state.restore(strategy, record.layers)
        log = EventLog(folder.events)
        for name in damaged:
            log.append("record-damaged", file=name)
        _run(job, task, strategy, grid, folder, log, record, plan)
    finally:
        folder.close()


def _is_one_machine(grid: Grid) -> bool:
    """Return whether the nodes are simulated, so that all of it is one machine."""
    return is_simulation(grid) or isinstance(grid, LocalGrid)


def _plan(job: Job, task: Task) -> PlanRun | None:
    """Return the run of the job's TFF plan, if it has one."""
    if not job.tff.plan:
        return None
    loaded: PlanRun = app_module("tff_bridge.server").load(job, task)
    return loaded


def _strategy(job: Job, plan: PlanRun | None) -> Strategy:
    """Return the job's layers around its, or its plan's, server step."""
    if plan and plan.alone:
        return plan.strategy
    layers = stack.build(job, plan.strategy if plan else None)
    return plan.around(layers) if plan else layers


def _run(
    job: Job,
    task: Task,
    strategy: Strategy,
    grid: Grid,
    folder: RunFolder,
    log: EventLog,
    record: RoundRecord,
    plan: PlanRun | None,
) -> None:
    """Run the rounds after ``record``; however they end, the log and report say it."""
    start = time.monotonic()
    status, reason = "failed", "the process was interrupted"
    try:
        named = NamedGrid(
            grid,
            stack.least_nodes(job),
            job.round.join_timeout,
            refuse=lambda node, why: log.append("node-refused", node=node, reason=why),
            offer=plan.offer if plan else None,
            greeted=lambda asked, answered, down, up: log.append(
                "plan-offered",
                nodes=asked,
                answered=answered,
                bytes_down=down,
                bytes_up=up,
            ),
        )
        if plan:
            pinned = "nobody: simulation" if _is_one_machine(grid) else "each node"
            log.append("tff-plan", **plan.about, pinned=pinned)
        _announce(job, folder, log, record, len(named.wait()))
        evaluate = _evaluator(job, task)
        loop = RoundLoop(job, strategy, named, folder, log, evaluate)
        final = loop.final(loop.run(record))
        checkpoint.save_model(folder.model, final)
        status, reason = "completed", ""
    except KeyboardInterrupt:
        status, reason = "stopped", "interrupted from the keyboard"
        raise
    except TrustStramError as error:
        reason = str(error)
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise RunError(reason) from error
    finally:
        seconds = round(time.monotonic() - start, 3)
        log.append("run-finished", status=status, reason=reason, seconds=seconds)
        log.close()
        result = RunResult.read(folder.path)
        result.write()
        curves(result)


def _start(
    job: Job,
    task: Task,
    folder: RunFolder,
    damaged: list[str],
    plan: PlanRun | None,
) -> RoundRecord:
    """Return the record to start from: the last durable one, or the initial model."""
    if job.run.resume:
        record = checkpoint.latest(folder.rounds, damaged.append)
        if record is None:
            raise CheckpointError(
                f"Run {folder.id} has no whole round record. Start it again under "
                "another run.id."
            )
        _check_same(job, record.job)
        return record
    if plan:
        arrays = plan.strategy.initial()
    else:
        model = task.model(job, seed=derive_seed(job.run.seed, "model"))
        arrays = ArrayRecord(model.state_dict())
    record = RoundRecord(0, arrays, job.config())
    checkpoint.write(folder.rounds, record)
    return record


def _check_same(job: Job, recorded: Mapping[str, object]) -> None:
    """Refuse to continue a run under other settings."""
    config = job.config()
    changed = [
        f"{key} was {recorded.get(key)}, is {config[key]}"
        for key in config
        if key not in MAY_CHANGE and config[key] != recorded.get(key)
    ]
    if changed:
        raise CheckpointError("The run cannot continue: " + "; ".join(changed) + ".")
    _check_planned(job, recorded["train.rounds"])


def _check_planned(job: Job, planned: object) -> None:
    """Refuse another number of rounds than the noise was planned for.

    With noise by the server the layer keeps its first plan, so that more rounds do not
    train (``evaluate-only``), or train as a filter allows (``on-plateau``).
    """
    keys = job.privacy
    keeps = keys.on_exhausted == "evaluate-only" or keys.schedule == "on-plateau"
    if not keys.on or job.train.rounds == planned or (keys.central and keeps):
        return
    raise CheckpointError(
        f"The run cannot continue: train.rounds was {planned}, is {job.train.rounds}. "
        "Each round's noise was planned for that number, and a plan that is made after "
        "looking at outputs is not covered by the guarantee. Instead: train.rounds = "
        f"{planned}, another run with a budget of its own, or, with noise by the "
        "server, privacy.on-exhausted = evaluate-only for rounds without training."
    )


def _announce(
    job: Job, folder: RunFolder, log: EventLog, record: RoundRecord, nodes: int
) -> None:
    arrays = record.arrays.values()
    log.append(
        "run-started",
        run=folder.id,
        job=job.config(),
        version=__version__,
        parameters=sum(_size(array.shape) for array in arrays),
        model_bytes=sum(len(array.data) for array in arrays),
        nodes=nodes,
        resumed_from=record.round,
    )
    if record.round:  # the process may have died between the record and its events
        rounds.tell(record, folder, log)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _evaluator(job: Job, task: Task) -> Evaluate | None:
    """Return the server's own evaluation, or None if it has no test data."""
    if job.round.evaluate in ("clients", "none"):
        return None
    data = task.test_data(job, None)
    if data is None:
        if job.round.evaluate != "auto":
            raise RunError(
                f"round.evaluate = {job.round.evaluate}, but task {job.task.name} "
                "gives the server no test data. Use round.evaluate = clients."
            )
        if job.privacy.schedule == "on-plateau":
            raise RunError(
                "privacy.schedule = on-plateau needs public test data on the server, "
                f"which task {job.task.name} does not give it. Use increasing."
            )
        return None
    model = task.model(job, seed=0)

    def evaluate(arrays: ArrayRecord) -> dict[str, float]:
        model.load_state_dict(arrays.to_torch_state_dict())
        found = task.evaluate(model, data, job)
        return {name: float(found[name]) for name in task.metrics}

    return evaluate
