"""Secure aggregation without a network: the work and the bytes of one client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks._report import Line, Trial, interleaved, line, milliseconds, progress
from benchmarks.guard import _epoch as local_epoch
from strategies.secure.identity import Identity, Roster
from strategies.secure.masks import add_masks
from strategies.secure.secagg import Session
from strategies.secure.secagg_client import Client
from strategies.secure.secagg_server import Server
from strategies.secure.secagg_wire import MASK, Request, Settings, word_of
from strategies.secure.wire import seal
from truststram.job import Job

__all__ = ["Masked", "masked_lines"]

SECRET = bytes(32)
NEIGHBOURS = (1, 9, 20)
# Clients in a sum; each exchanges masks with all others (up to 100 clients).
FEW, MANY = 10, 32


@dataclass
class Masked:
    """A sum of ``nodes`` clients up to the point where they have trained.

    Parameters
    ----------
    nodes : int
        Each has ``nodes - 1`` neighbours (semi-honest).
    threat : str
    """

    nodes: int
    threat: str = "semi-honest"

    def __post_init__(self) -> None:
        self.settings = Settings(
            Job.of(
                {
                    "secure.scheme": "secagg",
                    "secure.max-cohort": self.nodes,
                    "secure.threat": self.threat,
                }
            )
        )
        names = [f"{i:04d}" for i in range(self.nodes)]
        self.identities = [Identity.derive(SECRET, name) for name in names]
        roster = Roster(identity.member for identity in self.identities)
        session = Session("bench", 1, bytes(32), self.threat, 3)
        self.clients = [Client(session, i, roster) for i in self.identities]
        self.server = Server(session, roster)
        self.up: dict[str, int] = {}  # bytes of client 0, by stage
        self.down: dict[str, int] = {}
        self.request = Request("keys", 1, bytes(32).hex())
        bodies = self.server.keys(self._answers("keys", None))
        bodies = self.server.shares(self._answers("shares", bodies))
        self.down[MASK] = len(bodies[0])
        for i, body in bodies.items():
            self.clients[i].open(body)

    def client(self, update: NDArray[np.float32]) -> Callable[[], bytes]:
        """Return what a client does after training: integers, masks, signed frame."""
        client = copy(self.clients[0])
        client._kept = copy(client._kept)  # masked once, measured many times

        def work() -> bytes:
            about = {"values": len(update), "metrics": ["train-loss"]}
            slots = self.settings.slots(about)
            rng = np.random.default_rng(1)
            vector = slots.fill(update, 100, {"train-loss": 1.0}, "label", rng)
            values = vector.astype(word_of(slots), copy=False)
            client.mask(values)
            return self._frame(MASK, values.data.cast("B"), 0, about)

        return work

    def finish(self, update: NDArray[np.float32]) -> NDArray[np.float64]:
        """Play the rest, everybody sending ``update``; return the sum, shape (n,)."""
        about = {"values": len(update), "metrics": ["train-loss"]}
        slots = self.settings.slots(about)
        for i, client in enumerate(self.clients):
            rng = np.random.default_rng(i)
            values = slots.fill(update, 100, {"train-loss": 1.0}, "label", rng)
            client.mask(values)
            if i == 0:
                frame = self._frame(MASK, values.data.cast("B"), 0, about)
                self.up[MASK] = len(frame)
            self.server.add(i, values)
        bodies = self.server.survivors()
        if self.threat == "malicious":
            bodies = self.server.consents(self._answers("consent", bodies))
        total = self.server.unmask(self._answers("unmask", bodies))
        return slots.read(total, self.nodes, "label").values

    def _answers(
        self, stage: str, bodies: Mapping[int, bytes] | None
    ) -> dict[int, bytes]:
        """Return what all clients answer; count the bytes of the first one's frames."""
        answers = {}
        for i, client in enumerate(self.clients):
            act = getattr(client, stage)
            answers[i] = act() if bodies is None else act(bodies[i])
        self.up[stage] = len(self._frame(stage, answers[0], 0, {}))
        self.down[stage] = len(bodies[0]) if bodies is not None else 0
        return answers

    def _frame(
        self,
        stage: str,
        body: bytes | memoryview,
        client: int,
        about: Mapping[str, object],
    ) -> bytes:
        header = self.settings.header(
            "bench", self.request.at(stage), "0" * 64, **about
        )
        return seal(self.identities[client], header, body)


def masked_lines(
    values: NDArray[np.float32], peer: Callable[[], list[bytes]], repeats: int
) -> Iterator[Line]:
    """Yield bytes and times of secure aggregation, beside the peer's encryption.

    Parameters
    ----------
    values : float32 array of shape (n,)
        An update.
    peer : callable
        Encrypts and serialises ``values`` the usual way.
    repeats : int
    """
    size = len(values)
    progress(f"secure_sum: masks, {size:,} values")
    sums = {nodes: Masked(nodes) for nodes in (FEW, MANY)}
    trials: dict[str, Trial] = {"epoch": local_epoch(), "peer": lambda: peer}
    for nodes, one in sums.items():
        trials[str(nodes)] = partial(one.client, values)
    for count in NEIGHBOURS:
        trials[f"masks {count}"] = partial(_masks, size, count)
    times = milliseconds(interleaved(trials, repeats))
    theirs = sum(map(len, peer()))
    for nodes, one in sums.items():
        found = one.finish(values)
        sent = sum(one.up.values())
        stages = ", ".join(f"{stage} {count:,}" for stage, count in one.up.items())
        yield line(
            f"bytes of all uploads, secagg, {nodes} clients",
            sent / (4 * size),
            theirs / (4 * size),
            goal="ours <= 1.3",
            unit="times float32",
            note=f"signed frames of one client: {stages} bytes; received for them: "
            f"{sum(one.down.values()):,}; the sum is off by "
            f"{_error(found, values, nodes):.1e}",
        )
        yield line(
            f"masking, secagg, {nodes} clients",
            times[str(nodes)],
            times["peer"],
            goal="ratio >= 40",
            unit="ms",
            note=f"{size / times[str(nodes)] / 1000:.1f} M values/s/core against "
            f"{size / times['peer'] / 1000:.2f}: quantise to "
            f"{one.settings.quantiser.bits} bits, agree on keys, mask with "
            f"{nodes - 1} neighbours, serialise, sign; one thread, best of "
            f"{repeats} in turns",
        )
        yield line(
            f"client in a local epoch, secagg, {nodes} clients",
            times[str(nodes)],
            times["epoch"],
            goal="ratio <= 0.2",
            unit="ms",
            note=f"peer: an epoch of a CNN with 996,206 parameters; best of {repeats}",
        )
    for count in NEIGHBOURS:
        ours = times[f"masks {count}"]
        yield line(
            f"masks alone, secagg, neighbours = {count}",
            ours,
            times["peer"],
            unit="ms",
            note=f"{size / ours / 1000:.0f} M values/s/core: AES-256-CTR, added to "
            f"uint32 in place, own mask included; best of {repeats}",
        )


def _masks(size: int, neighbours: int) -> Callable[[], None]:
    """Return the addition of the own mask and those of ``neighbours`` to uint32."""
    values = np.zeros(size, np.uint32)
    rng = np.random.default_rng(1)
    masks = [(rng.bytes(32), bool(i % 2)) for i in range(neighbours + 1)]
    return lambda: add_masks(values, masks)


def _error(
    found: NDArray[np.float64], values: NDArray[np.float32], nodes: int
) -> float:
    return float(np.abs(found - nodes * values.astype(np.float64)).max())
