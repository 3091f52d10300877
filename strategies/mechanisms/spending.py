"""What a node has released in a run: counted by the node before anything leaves it.

Where a node adds noise itself (local trust, its share of distributed noise, DP-SGD) the
server is not trusted to count: the node does, and refuses what its noise was not
planned for.

A run is known by the name that our server gives it in every message, which a resume
keeps; other servers send none, and Flower's id of the run takes its place. A Flower run
has one name: the first one is kept, and another one in it is refused. In a deployment
name and count are files of the node (:mod:`..stores`) and outlive SuperNode and resume;
other runs do not push them out. In simulations they are in Flower's state, which lives
as long as Flower's run.

What the count binds
--------------------
A server that keeps its run ids and node ids: within one Flower run, and in all that
resume it under its name, a node releases no more than was planned, whatever it is sent.
Not bound is a server that begins a new Flower run with a new name, which has a budget
of its own, or that gives the node another id: without Flower's authentication of
SuperNodes a node that restarts has a new one, and begins anew. Budgets of all runs add
up, and the node's log says when one is added.

Guarantees
----------
A release is counted on the disk before it is made, also if two processes of the node
count at once. A count that cannot be read or written is a refusal. A round that is
repeated, as the first one after a resume may be, is counted again, so that the last one
may find the budget spent: the model before it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, WARNING
from typing import Any

from flwr.app import ConfigRecord, Context, Message
from flwr.common.logger import log

from truststram.errors import DataError, ProtocolError
from truststram.exchange import RUN
from truststram.job import Job
from truststram.records import records_of

from ..accounting.events import Release
from ..stores import store_for_good
from ..withheld import WithheldError
from .distributed import DistributedPlan
from .plan import Plan

__all__ = ["EVALUATIONS", "RELEASES", "ROUNDS", "Spending"]

# Folders of a node's counts, and of the names of Flower's runs.
COUNTS, NAMES = "privacy", "flower-runs"
ENTRY, NAME = "count", "name"
RELEASES = "releases"
# What a node counts where one number for each run is planned.
ROUNDS, EVALUATIONS = "rounds", "evaluations"
LONGEST_NAME = 200


class Spending:
    """The count of one node in the run of a message.

    Raises
    ------
    ProtocolError
        ``run``, for a name of the run that is no text, or a long one.
    """

    def __init__(self, message: Message, context: Context) -> None:
        self._run = _run_of(message, context)
        self._store = store_for_good(context, COUNTS, self._run)
        self._names = store_for_good(context, NAMES, str(context.run_id))

    def count(self, what: str, times: int) -> int:
        """Count a round of DP-SGD, or an evaluation, before it is made.

        Repetitions count. Returns how many there were before. The noise was planned for
        ``times`` of them: another number later would not fit to it.
        """
        with self._changed() as kept:
            planned_for, done = (int(x) for x in kept.get(what, [times, 0]))
            if planned_for != times:
                raise WithheldError(f"the noise was planned for {planned_for} {what}")
            if done >= planned_for:
                raise WithheldError(f"the privacy budget is spent after {done} {what}")
            kept[what] = [planned_for, done + 1]
        return done

    def charge(self, job: Job, plan: Plan | DistributedPlan, release: Release) -> int:
        """Count one release before it is made; return how many like it were before.

        Noise that was planned later, for another number of rounds, is refused even
        where a budget is left: whoever asks has seen what came before, and releases
        that are chosen by it do not compose like a fixed sequence.
        """
        with self._changed() as kept:
            found = {Release.from_dict(r): int(n) for r, n in kept.get(RELEASES, [])}
            whole, done = plan.charges(job), found.get(release, 0)
            made = f"{sum(found.values())} releases"
            if not set(found) <= set(whole):
                raise WithheldError(f"after {made} with noise of another plan")
            if done >= whole[release]:
                raise WithheldError(f"the privacy budget is spent after {made}")
            found[release] = done + 1
            kept[RELEASES] = [[r.as_dict(), n] for r, n in found.items()]
        return done

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """Yield what was counted; afterwards what it was changed to is on the disk."""
        try:
            self._keep_name()
            with self._store.alone():
                kept = self._store.about(ENTRY)
                if self._store.damaged:
                    raise WithheldError("the node's count of releases is damaged")
                if kept is None:
                    kept = {"run": self._run}
                    self._tell_first()
                yield kept
                self._store.save(ENTRY, kept, [])
                return
        except DataError as error:
            log(ERROR, "%s", error)
        # Outside the handler: the error, with the node's paths, would be its context.
        raise WithheldError("the node cannot keep its count of releases")

    def _keep_name(self) -> None:
        """Keep the name of this Flower run; refuse it if there was another one."""
        with self._names.alone():
            kept = self._names.about(NAME)
            if self._names.damaged:
                raise WithheldError("the node's name of this run is damaged")
            if kept is None:
                self._names.save(NAME, {"run": self._run}, [])
            elif kept != {"run": self._run}:
                raise WithheldError("the run had another name before")

    def _tell_first(self) -> None:
        if others := self._store.others:
            log(
                WARNING,
                "%s begins a privacy budget on this node; %d other runs had theirs, "
                "and what they told adds up",
                *(self._run, others),
            )


def _run_of(message: Message, context: Context) -> str:
    """Return what the run is known by."""
    records = records_of(message.content, ConfigRecord)
    name = next((record[RUN] for record in records if RUN in record), "")
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise ProtocolError("run", "expected the name of a run")
    return f"run {name!r}" if name else f"Flower's run {context.run_id}"
