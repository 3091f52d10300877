"""What a node remembers of sums it took part in, so that it opens no two that differ.

From two sums for the same model whose terms differ by one node, the server could
subtract, whatever configuration came with the model. So whoever opens sums (decrypts
them, or gives its shares of their masks) does so, for one model, for sets of nodes that
are equal or have nobody in common; and it is written down before it is done. A set of
an earlier model is opened again only if it is exactly the same.

Of sums inside fixed groups it is also remembered, for each Flower run, who was together
with whom: a set that would bring more nodes together than a group can have is refused,
whatever the model. Nodes of a group may drop out and come back. Within that one run
only: another one, which the server may start, may have other groups. Who was together
is known for the last runs; a run before those gets no sum any more.

What this does not do
---------------------
A model is known by its hash. A server that deviates from the protocol can change one
weight by its last digit: that is another model, for which other sets may be opened, and
updates from nearly the same model are nearly the same: that models are told apart by
more than a digit is the word of a server that follows the protocol. Equal sets may be
opened more than once: nodes that train deterministically repeat their sum, others give
a second sum over the same nodes.

The memory belongs to a key (that of the job, or the name of the scheme where the job
has none), not to the run: another run under the same key finds what it says of models.
In a deployment it is the file ``journal.json`` in the node's folder of keys and
outlives the process; processes that use it at the same time take turns. In a simulation
it is in Flower's node state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context

from truststram.durable import alone
from truststram.errors import CheckpointError, ProtocolError

from .journal_form import FORGOTTEN, PARTS, Memory, parsed
from .private_files import write
from .wire import digest

__all__ = ["Journal"]

STATE = "truststram-secure"
MAX_FILE = 64 * 2**20
# Models whose sets of nodes, and runs whose groups, are remembered name by name; what
# this node trained for and may still be asked to open.
RECENT = 8
Names = Collection[str]


class Journal:
    """The memory of one node under one key.

    Every method reads, checks and writes under a lock: of two processes that answer
    two requests at once, the second sees what the first has done.

    Parameters
    ----------
    context : Context
        Used when ``folder`` is None.
    key : str
        Fingerprint of the key.
    folder : Path or None

    Raises
    ------
    CheckpointError
        If the memory is damaged or too large.
    """

    def __init__(self, context: Context, key: str, folder: Path | None) -> None:
        self._context, self._key = context, key
        self._path = folder / "journal.json" if folder else None
        self._read()

    def train(self, part: str) -> None:
        """Remember that this node trained for a sum; the last few are.

        Parameters
        ----------
        part : str
            Model, content and cohort (:attr:`.terms.Request.part_taken`).
        """
        with self._memory() as memory:
            kept = [one for one in memory["trained"] if one != part]
            memory["trained"] = [*kept, part][-RECENT:]

    def trained(self, part: str) -> bool:
        """Return whether this node trained for a sum, lately."""
        with self._memory() as memory:
            return part in memory["trained"]

    def mask(
        self, model: str, cohort: Names, agree: Callable[[Names, Names], bool]
    ) -> None:
        """Mask an update for a cohort.

        Parameters
        ----------
        model : str
        cohort : collection of str
        agree : callable
            Whether sums of two cohorts may be masked for one model.

        Raises
        ------
        ProtocolError
            ``cohort``, if this node masked for another one that does not agree.
        """
        text = (
            "this node masked an update of this model for another set of nodes, and "
            "both could be opened"
        )
        error = ProtocolError("cohort", text)
        with self._memory() as memory:
            _note(memory, "masked", model, sorted(cohort), agree, error)

    def open(self, model: str, nodes: Iterable[str]) -> None:
        """Open the sum of a set of nodes; remembered before it is done.

        Raises
        ------
        ProtocolError
            ``reopened``, for a set that shares nodes with another one of this model
            without being the same.
        """
        text = "another sum with some of these nodes was opened for this model"
        error = ProtocolError("reopened", text)
        with self._memory() as memory:
            _note(memory, "opened", model, sorted(nodes), _disjoint, error)

    def together(self, run: str, nodes: Iterable[str], most: int) -> None:
        """Take part in, or open, a sum inside one of a run's fixed groups.

        Parameters
        ----------
        run : str
        nodes : iterable of str
            Who can be in the sum.
        most : int
            Nodes that the largest group can have.

        Raises
        ------
        ProtocolError
            ``regrouped``, if more nodes would have been together in this Flower run
            than a group has, one by one or all at once; or for a run whose groups are
            forgotten, since ``RECENT`` others had sums after its last one.
        """
        with self._memory() as memory:
            _keep_together(memory["groups"], run, set(nodes), most)

    @contextmanager
    def _memory(self) -> Iterator[Memory]:
        """Give the memory of this key, which is written unless an error is raised."""
        with self._alone():
            everything = self._read()
            memory = everything.setdefault(self._key, {})
            for what, (empty, _) in PARTS.items():
                memory.setdefault(what, empty())
            before = json.dumps(everything)
            yield memory
            text = json.dumps(everything)
            if text != before:
                self._write(text)

    def _alone(self) -> AbstractContextManager[None]:
        """Wait until no other process is between reading and writing."""
        if self._path is None:
            return nullcontext()
        return alone(self._path.with_suffix(".lock"))

    def _read(self) -> dict[str, Memory]:
        data = self._data()
        if len(data) > MAX_FILE:
            raise CheckpointError(f"{self._name} is too large.")
        found = parsed(data)
        if found is None:
            # Going on without a memory would make room for a second sum.
            raise CheckpointError(
                f"{self._name} is damaged: this node no longer knows which sums it "
                "took part in. Remove it, and begin jobs with models that were never "
                "trained here: with another run.seed, and for secure.scheme = bfv or "
                "ckks with a new key."
            )
        return found

    def _data(self) -> bytes:
        """Return what is kept, as it is; one byte more than allowed of more."""
        if self._path is None:
            record = self._context.state.get(STATE)
            if record is None:
                return b"{}"
            text = record.get("json") if isinstance(record, ConfigRecord) else None
            return str(text).encode()
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return b"{}"

    @property
    def _name(self) -> str:
        return str(self._path or "The journal in this node's state")

    def _write(self, text: str) -> None:
        if self._path is None:
            self._context.state[STATE] = ConfigRecord({"json": text})
            return
        write(self._path, text.encode())


def _note(
    memory: Memory,
    what: str,
    model: str,
    names: list[str],
    agree: Callable[[Names, Names], bool],
    error: ProtocolError,
) -> None:
    """Note a set of nodes, if it is a known one or agrees with all known ones."""
    told = digest(*(name.encode() for name in names))
    known = memory[what].setdefault(model, [])
    if told in known:
        return
    recent = memory["recent"].setdefault(what, {})
    forgotten = known and model not in recent
    if forgotten or not all(agree(one, names) for one in recent.get(model, [])):
        raise error
    known.append(told)
    recent.setdefault(model, []).append(names)
    _forget(recent)


def _keep_together(runs: dict[str, Any], run: str, names: set[str], most: int) -> None:
    """Note that nodes are in one group, with all they were together with before."""
    before = runs.pop(run, [])
    if before is FORGOTTEN:
        text = f"{RECENT} others had sums since, and those of this one are forgotten"
        raise ProtocolError("regrouped", f"groups are fixed for a run: {text}")
    met = [group for group in before if not names.isdisjoint(group)]
    group = names.union(*met)
    if len(group) > most:
        text = f"{len(group)} nodes would have been together, and groups have {most}"
        raise ProtocolError("regrouped", f"groups are fixed for a run: {text} at most")
    runs[run] = [*(one for one in before if one not in met), sorted(group)]
    known = [run for run, groups in runs.items() if groups is not FORGOTTEN]
    runs |= dict.fromkeys(known[:-RECENT], FORGOTTEN)


def _forget(recent: dict[str, Any]) -> None:
    """Drop what is oldest."""
    while len(recent) > RECENT:
        del recent[next(iter(recent))]


def _disjoint(one: Names, other: Names) -> bool:
    return set(one).isdisjoint(other)
