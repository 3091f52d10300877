"""The round loop: drives any Flower Strategy, one durable round after another.

A round is: sample, train, aggregate, evaluate, **record**, and only then tell. The
record (:mod:`server_app.checkpoint`) is on disk before the round's report is written,
printed or sent, so a run that dies at any point continues from its last record and
nothing was told that a resumed run does not also do.

Every random choice of a round is drawn from the run's seed and the round's number, and
replies are ordered by node name, so a round that runs again after a death repeats
exactly.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from truststram.errors import RunError
from truststram.events import EventLog
from truststram.exchange import RUN, Exchange, Phase
from truststram.job import Job
from truststram.result import Metrics, RoundReport, better
from truststram.rng import derive_seed
from truststram.techniques import StrategyLayer, TailAverage, stack

from . import checkpoint, state
from .checkpoint import RoundRecord
from .folder import RunFolder
from .nodes import NamedGrid, name_order

__all__ = ["RoundLoop"]

Evaluate = Callable[[ArrayRecord], Mapping[str, float]]


class RoundLoop:
    """Runs a job's rounds from a record to the end.

    Parameters
    ----------
    job : Job
    strategy : Strategy
        Any Flower strategy; our layers report what they drop.
    grid : NamedGrid
    folder : RunFolder
    log : EventLog
    evaluate : callable, optional
        The server's own evaluation of a model; None if it has no test data.
    """

    def __init__(
        self,
        job: Job,
        strategy: Strategy,
        grid: NamedGrid,
        folder: RunFolder,
        log: EventLog,
        evaluate: Evaluate | None,
    ) -> None:
        self._job, self._strategy, self._grid = job, strategy, grid
        self._folder, self._log = folder, log
        self._evaluate = evaluate
        self._codes: Counter[str] = Counter()  # this round's drops by reason
        self._dropped: Counter[str] = Counter()  # and by phase
        self._saved: Counter[str] = Counter()  # bytes that compression saved, by way
        self._staged: Counter[str] = Counter()  # bytes of a layer's own exchanges
        self._exhausted = False  # a layer said in this round that no budget is left
        self._exchange = Exchange(
            grid,
            job.round.deadline,
            job.round.quorum,
            order=lambda node: name_order(grid.name_of(node)),
        )
        for layer in stack.walk(strategy):
            if isinstance(layer, StrategyLayer):
                layer.emit, layer.name_of = self._emit, grid.name_of
                if not grid.simulated:
                    layer.seconds_of = self._exchange.seconds.get

    def run(self, record: RoundRecord) -> RoundRecord:
        """Run every round after ``record`` and return the last one's record.

        Raises
        ------
        RunError
            After ``round.max-failed`` rounds in a row without a valid reply (rounds
            without training because the privacy budget is spent do not count), or when
            too few nodes are connected for too long.
        """
        while record.round < self._job.train.rounds and not self._is_stale(record):
            record = self._round(record)
            if record.failed >= self._job.round.max_failed:
                raise RunError(
                    f"No valid reply in {record.failed} rounds in a row (round "
                    f"{record.round}): {_counted(record.report['codes'])}. The model "
                    "of the last good round is kept."
                )
        return record

    def final(self, record: RoundRecord) -> ArrayRecord:
        """Return the run's model: the last round's, or what a layer makes of it.

        If that is another model, it is evaluated too and an event says how it did.
        """
        arrays = record.arrays
        for layer in stack.walk(self._strategy):
            if isinstance(layer, TailAverage):
                arrays = layer.final(arrays)
        if arrays is not record.arrays:
            metrics = _plain(self._evaluate(arrays)) if self._evaluate else {}
            self._log.append("final-model", round=record.round, metrics=metrics)
        return arrays

    def _is_stale(self, record: RoundRecord) -> bool:
        """Return whether early stop is on and the best round is long ago."""
        patience, best = self._job.run.patience, record.best
        return bool(patience and best and record.round - best["round"] >= patience)

    def _round(self, last: RoundRecord) -> RoundRecord:
        number, start = last.round + 1, time.monotonic()
        self._codes.clear()
        self._dropped.clear()
        self._saved.clear()
        self._staged.clear()
        self._exhausted = False
        self._grid.wait()
        train, arrays, train_metrics = self._train(number, last.arrays)
        skipped = arrays is None
        failed = skipped and not self._exhausted
        model = last.arrays if arrays is None else arrays
        phase, metrics = self._evaluated(number, model)
        report = RoundReport(
            round=number,
            metrics=metrics,
            train_metrics=_plain(train_metrics),
            cohort=len(train.replies) + train.lost,
            replies=len(train.replies) - self._dropped["train"],
            rejected=self._codes.total(),
            lost=train.lost + phase.lost,
            late=train.late + phase.late,
            codes=dict(sorted(self._codes.items())),
            bytes_up=train.bytes_up + phase.bytes_up + self._staged["up"],
            bytes_down=train.bytes_down + phase.bytes_down + self._staged["down"],
            saved_up=self._saved["up"],
            saved_down=self._saved["down"],
            seconds=round(time.monotonic() - start, 3),
            skipped=skipped,
        )
        record = self._recorded(last, model, report, failed)
        tell(record, self._folder, self._log)
        return record

    def _train(
        self, number: int, arrays: ArrayRecord
    ) -> tuple[Phase, ArrayRecord | None, MetricRecord | None]:
        config = self._config(number)
        arrays = ArrayRecord(dict(arrays))  # some strategies consume their record
        with self._seeded("train", number):
            messages = list(
                self._strategy.configure_train(number, arrays, config, self._grid)
            )
        secret = any(
            getattr(layer, "secret_cohort", False)
            for layer in stack.walk(self._strategy)
        )
        chosen = [] if secret else [m.metadata.dst_node_id for m in messages]
        cohort = sorted(map(self._grid.name_of, chosen), key=name_order)
        self._emit("round-started", round=number, cohort=cohort)
        phase = self._exchange(messages, self._progress("train", number))
        new, metrics = self._strategy.aggregate_train(number, phase.replies)
        return phase, new, metrics

    def _config(self, number: int) -> ConfigRecord:
        """Return what every message of a round says beside the model."""
        return ConfigRecord({"server-round": number, RUN: self._folder.name})

    def _evaluated(self, number: int, arrays: ArrayRecord) -> tuple[Phase, Metrics]:
        """Evaluate on the server, the clients or both, as the job says."""
        who, phase = self._job.round.evaluate, Phase()
        metrics: Metrics = {}
        on_server = who in ("server", "both") or (who == "auto" and self._evaluate)
        if on_server and self._evaluate:
            metrics |= _plain(self._evaluate(arrays))
            self._observed(number, metrics)
        job = self._job
        told = not (job.privacy.on or job.secure.on)  # accuracies of single nodes
        ask = who == "auto" and not self._evaluate and told
        due = job.privacy.evaluates(number, job.train.rounds)
        if ask or (due and who in ("clients", "both")):
            phase, found = self._ask_clients(number, arrays)
            prefix = "client-" if on_server else ""
            metrics |= {f"{prefix}{name}": value for name, value in found.items()}
        return phase, metrics

    def _observed(self, number: int, metrics: Metrics) -> None:
        """Tell the layers how good the model is, on the server's public test data."""
        for layer in stack.walk(self._strategy):
            if isinstance(layer, StrategyLayer):
                layer.observe(number, metrics)

    def _ask_clients(self, number: int, arrays: ArrayRecord) -> tuple[Phase, Metrics]:
        config = self._config(number)
        with self._seeded("evaluate", number):
            messages = list(
                self._strategy.configure_evaluate(number, arrays, config, self._grid)
            )
        phase = self._exchange(messages, self._progress("evaluate", number))
        return phase, _plain(self._strategy.aggregate_evaluate(number, phase.replies))

    def _recorded(
        self,
        last: RoundRecord,
        model: ArrayRecord,
        report: RoundReport,
        failed: bool,
    ) -> RoundRecord:
        """Return the record of this round, durable if it is due."""
        best = last.best
        metric, value = next(iter(report.metrics.items()), ("", None))
        if value is not None and better(metric, value, best.get("value")):
            best = {"round": report.round, "metric": metric, "value": value}
        record = RoundRecord(
            round=report.round,
            arrays=model,
            job=self._job.config(),
            layers=state.snapshot(self._strategy),
            report=asdict(report),
            best=best,
            failed=last.failed + 1 if failed else 0,
        )
        every, total = self._job.run.checkpoint_every, self._job.train.rounds
        if record.round % every == 0 or record.round == total:
            checkpoint.write(self._folder.rounds, record)
        return record

    def _emit(self, kind: str, **data: Any) -> None:
        if kind == "reply-dropped":
            self._codes[data["code"]] += 1
            self._dropped[data["phase"]] += 1
        elif kind == "compressed":
            self._saved.update(up=data["saved_up"], down=data["saved_down"])
        elif kind == "secure-stage":
            self._staged.update(up=data["bytes_up"], down=data["bytes_down"])
        elif kind == "privacy-exhausted":
            self._exhausted = True
        self._log.append(kind, **data)

    def _progress(self, phase: str, number: int) -> Callable[[int, int], None]:
        def progress(replies: int, expected: int) -> None:
            self._log.append(
                "phase-progress",
                round=number,
                phase=phase,
                replies=replies,
                expected=expected,
            )

        return progress

    @contextmanager
    def _seeded(self, phase: str, number: int) -> Iterator[None]:
        """Make stock strategies, which sample with ``random``, repeatable."""
        before = random.getstate()
        random.seed(derive_seed(self._job.run.seed, "sample", phase, number))
        try:
            yield
        finally:
            random.setstate(before)


def tell(record: RoundRecord, folder: RunFolder, log: EventLog) -> None:
    """Write what follows from a recorded round: its events and the best model."""
    log.append("round-finished", **record.report)
    if record.best and record.best["round"] == record.round:
        checkpoint.save_model(folder.best, record.arrays)
        log.append("best-model", **record.best)


def _plain(metrics: Mapping[str, Any] | None) -> Metrics:
    """Return the scalar metrics of a record; None for NaN and infinity."""
    items: Iterable[tuple[str, Any]] = (metrics or {}).items()
    return {
        name: float(value) if math.isfinite(value) else None
        for name, value in items
        if isinstance(value, (int, float))
    }


def _counted(codes: Mapping[str, int]) -> str:
    return ", ".join(f"{n} x {code}" for code, n in codes.items()) or "no reply came"
