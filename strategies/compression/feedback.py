"""Error feedback: what a codec left out of an update is added to the next one.

Stich et al., "Sparsified SGD with Memory", NeurIPS 2018; Karimireddy et al., "Error
Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019. Differences:
a node that sits a round out keeps its residual, and the residual is durable.

Mathematics (shapes (d,)): the node sends ``Q(u_t + r_t)`` and keeps
``r_(t+1) = u_t + r_t - Q(u_t + r_t)``.

Two entries of the node's memory take turns. Each is the end of one round: the residual
after it and the reply that was sent, under the hash of the model that the round began
with. So a round that runs again begins from the residual that it began from the first
time, and if it is the same round of the same model, the reply is the one that was sent.

Guarantees
----------
A residual of another job, model or later round is never used, nor one that is not
finite or makes an update so. If there is none that fits, the residual is zero and
:attr:`Feedback.fresh` says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from truststram.records import Float32

from ..memory import Store

__all__ = ["Feedback"]

SLOTS = ("uplink-0", "uplink-1")


class Feedback:
    """A node's residual in one job.

    Parameters
    ----------
    store : Store
        The node's memory of this job.
    spec : bytes
        Hash of the model's names, shapes and dtypes.
    d : int
        Length of the residual.
    """

    def __init__(self, store: Store, spec: bytes, d: int) -> None:
        self._store, self._spec, self._d = store, spec.hex(), d
        self._slots = {slot: self._about(slot) for slot in SLOTS}
        self.fresh = False

    @property
    def damaged(self) -> bool:
        """Whether something that was remembered is damaged."""
        return bool(self._store.damaged)

    def repeated(
        self, server_round: int, model: bytes
    ) -> tuple[RecordDict, bytes] | None:
        """Return the reply to this round of this model, if it was made before.

        Returns
        -------
        records, body
            As they were given to :meth:`commit`.
        """
        for slot, about in self._slots.items():
            if about is None or (about["round"], about["model"]) != (
                server_round,
                model.hex(),
            ):
                continue
            entry = self._store.load(slot)
            if entry is not None:
                return _records(entry.about["records"]), bytes(entry.parts[1])
        return None

    def residual(self, server_round: int) -> Float32:
        """Return what earlier rounds left, shape (d,); read-only."""
        past = self._before(server_round)
        entry = self._store.load(past[0]) if past and not self._store.damaged else None
        # Without the latest residual the one before it would be added a second time.
        if entry is not None and not self._store.damaged:
            values = np.frombuffer(entry.parts[0], np.float32)
            if len(values) == self._d:
                return values
        self.fresh = True
        return np.zeros(self._d, np.float32)

    def added(self, server_round: int, update: Float32) -> Float32:
        """Return an update plus the residual, or alone if the sum is not finite."""
        with np.errstate(over="ignore"):
            total = update + self.residual(server_round)
        if np.isfinite(total).all():
            return total
        self.fresh = True
        return update

    def commit(
        self,
        server_round: int,
        model: bytes,
        residual: Float32,
        records: RecordDict,
        body: bytes,
    ) -> None:
        """Make the end of a round durable, before the reply leaves the node.

        Parameters
        ----------
        server_round : int
        model : bytes
            Hash of the model that the round began with.
        residual : float32 array of shape (d,)
            If it is not finite, the next round begins with nothing.
        records : RecordDict
            MetricRecords and ConfigRecords of the reply.
        body : bytes
            The encoded update.

        Raises
        ------
        DataError
            If it cannot be; the round before is intact.
        """
        before = [] if self.fresh else self._before(server_round)[:1]
        for slot in SLOTS if self.fresh else ():
            self._store.drop(slot)  # ends of rounds that were undone
        about = {
            "round": server_round,
            "model": model.hex(),
            "spec": self._spec,
            "records": _described(records),
        }
        free = next(slot for slot in SLOTS if slot not in before)
        values = np.ascontiguousarray(residual, np.float32)
        if not np.isfinite(values).all():
            values = values[:0]
        self._store.save(free, about, (values.view(np.uint8).data, body))

    def _about(self, slot: str) -> dict[str, Any] | None:
        """Return a slot's description if it is of this model's form."""
        about = self._store.about(slot)
        return about if about and about.get("spec") == self._spec else None

    def _before(self, server_round: int) -> list[str]:
        """Return the slots that end earlier rounds, the latest first."""
        rounds = {s: a["round"] for s, a in self._slots.items() if a is not None}
        past = [slot for slot in rounds if rounds[slot] < server_round]
        return sorted(past, key=lambda slot: rounds[slot], reverse=True)


def _described(records: RecordDict) -> dict[str, Any]:
    """Return records as JSON values."""
    return {
        name: [isinstance(record, MetricRecord), _plain(dict(record))]
        for name, record in records.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {"items": [[k, _plain(v)] for k, v in value.items()]}
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    return value


def _records(described: dict[str, Any]) -> RecordDict:
    """Return the records that :func:`_described` described."""
    content = RecordDict()
    for name, (metrics, values) in described.items():
        items = {k: _back(v) for k, v in values["items"]}
        content[name] = MetricRecord(items) if metrics else ConfigRecord(items)
    return content


def _back(value: Any) -> Any:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
