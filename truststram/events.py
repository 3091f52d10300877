"""The record of a run: ``events.jsonl``, one JSON object a line, hash-chained.

Message format (one line)::

    {"seq": 4, "time": 1763752000.123, "kind": "round-finished", ...data...,
     "prev": "<sha256 of the line before>", "hash": "<sha256 of this line>"}

``hash`` is the SHA-256 of the canonical JSON (sorted keys, no spaces) of the object
without ``hash``. Reports, tables, pictures and metrics are projections of this file and
can be made again from it.

Guarantees
----------
A line that was changed, removed or reordered breaks the chain and :func:`read` says
where. Removing lines from the end is not detected (nothing outside the file knows its
length). Whoever can rewrite the whole file can make a new chain: the hash shows damage,
it is not a signature.

Events
------
``run-started``      run, job, version, parameters, model_bytes, nodes, resumed_from
``round-started``    round, cohort
``reply-dropped``    round, phase, node, code, detail
``reply-capped``     round, node, found, used
``phase-progress``   round, phase, replies, expected
``update-rejected``  round, node, evidence
``rule-refused``     round, reason
``assumed-f``        round, replies, f
``incident``         round, node, causes, evidence (by cause), reputation
``node-quarantined`` round, node, until (last round left out), reputation
``node-released``    round, node
``quarantine-refused`` round, node, reason
``alert``            round, fraction, limit, nodes, response
``alert-ended``      round, fraction
``round-finished``   a :class:`~truststram.result.RoundReport`
``adversary``        round, attack, nodes (simulations of attacks)
``best-model``       round, metric, value
``node-refused``     node, reason
``tff-plan``         plan (sha256), algorithm, aggregator, server, bytes, built-with,
                     weights (examples | equal), pinned (by whom); of a computation
                     without aggregator, server and weights; with secure sums of the
                     plan's own also integers (how many) and integer-bits (widest);
                     of a training also evaluation (what nodes evaluate with: plan |
                     torch: why | nothing: why)
``plan-offered``     nodes (asked), answered, bytes_down, bytes_up
``tff-result``       round, silos (number), result (numbers and lists by name)
``compression-plan`` codec, ratio, downlink, parameters, raw, up, down, values, error
``compressed``       round, phase, saved_up, saved_down, nodes (name: bytes)
``codec-chosen``     round, node, codec, ratio, bytes, error, speed (bytes a second)
``residual-lost``    round, node, damaged
``downlink-off``     round, node
``privacy-plan``     mechanism, levels, unit, relation, trust, epsilon, delta, rounds,
                     schedule, evaluations, sampling, clip, cohort, server-rate,
                     noise-to-signal, secure-noise; of secure sums in groups also
                     groups (number), group-noise-to-signal, warning
``privacy-spent``    round, epsilon (to be claimed if the run was planned to end here),
                     spent (by the ledger), delta, clip, noise
``privacy-exhausted`` round, epsilon
``secure-plan``      scheme, trust (who must collude), bits, clip, most, encrypted,
                     clear, clear_fraction, clear_arrays, keys (simulated | operator)
``secure-groups``    round, groups (names of the nodes in each; secure.regroup)
``secure-sum``       round, clients, clipped (fraction)
``secure-refused``   round, code, detail
``secure-stage``     round, stage, asked, answered, bytes_down, bytes_up
``update-zeroed``    node, code
``final-model``      round, metrics
``run-finished``     status (completed | failed | stopped), reason, seconds
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import CheckpointError

__all__ = ["Event", "EventLog", "follow", "read"]

Event = dict[str, Any]
GENESIS = "0" * 64
# One line is bounded so that a damaged file cannot exhaust a reader's memory.
MAX_LINE = 16 * 2**20


def _digest(event: Event) -> str:
    text = json.dumps(event, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(line: bytes, seq: int, prev: str) -> Event:
    """Return the event of ``line`` or raise ValueError if it breaks the chain."""
    if not line.endswith(b"\n"):
        raise ValueError("the line is not complete")
    event = json.loads(line)
    if not isinstance(event, dict):
        raise ValueError("not a JSON object")
    found = event.pop("hash", None)
    if event.get("seq") != seq or event.get("prev") != prev or found != _digest(event):
        raise ValueError("the hash chain is broken")
    return {**event, "hash": found}


def _scan(path: Path) -> Iterator[tuple[Event, int]]:
    """Yield (event, end offset) and raise CheckpointError at the first bad line."""
    seq, prev, end = 0, GENESIS, 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            try:
                event = _checked(line, seq, prev)
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{path} line {seq + 1}: {error}.") from None
            seq, prev, end = seq + 1, event["hash"], end + len(line)
            yield event, end


def read(path: Path) -> list[Event]:
    """Return all events of a finished or interrupted run, verified.

    Raises
    ------
    CheckpointError
        At the first line that is damaged, missing or out of order; a torn last line
        counts as damaged.
    """
    return [event for event, _ in _scan(path)]


class EventLog:
    """Appends events to a file, continuing its chain.

    A torn last line (the process died while writing) is cut off; damage anywhere else
    is an error. Every append reaches the operating system before the method returns,
    so it survives the death of the process; :meth:`sync` makes it survive the machine.

    Parameters
    ----------
    path : Path
        Created if missing.
    clock : callable
        Returns seconds since the epoch.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._seq, self._prev, end = 0, GENESIS, 0
        if path.exists():
            self._seq, self._prev, end = _repaired_end(path)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(end)

    def append(self, kind: str, **data: Any) -> Event:
        """Write one event and return it as stored."""
        event: Event = {
            "seq": self._seq,
            "time": round(self._clock(), 3),
            "kind": kind,
            **data,
            "prev": self._prev,
        }
        event["hash"] = _digest(event)
        text = json.dumps(event, separators=(",", ":"), allow_nan=False)
        self._file.write(text.encode() + b"\n")
        self._seq, self._prev = self._seq + 1, event["hash"]
        return event

    def sync(self) -> None:
        """Force everything appended so far to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close the file."""
        self.sync()
        self._file.close()


def _repaired_end(path: Path) -> tuple[int, str, int]:
    """Return (next seq, last hash, offset) after the last whole line of ``path``."""
    seq, prev, end = 0, GENESIS, 0
    try:
        for event, offset in _scan(path):
            seq, prev, end = event["seq"] + 1, event["hash"], offset
    except CheckpointError:
        with path.open("rb") as file:
            file.seek(end)
            rest = file.read(MAX_LINE)
        if b"\n" in rest:  # more than a torn last line: not ours to repair
            raise
    return seq, prev, end


def follow(path: Path, alive: Callable[[], bool], poll: float = 0.1) -> Iterator[Event]:
    """Yield events as they are written, until ``alive()`` is false and all are read.

    For displays: the chain is not verified here.
    """
    position = 0
    while True:
        last_look = not alive()
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                while (line := file.readline(MAX_LINE)).endswith(b"\n"):
                    position += len(line)
                    yield json.loads(line)
        if last_look:
            return
        time.sleep(poll)
