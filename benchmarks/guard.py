"""The guard: what its checks cost, and what they keep away from Flower's strategies.

Goals: below 1 % of a round's training; reading an array faster than ``np.load`` does;
of the hostile replies none that ends the run or corrupts the model.
"""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import numpy as np
import torch
from flwr.app import Array, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from torch import nn

from benchmarks._federation import FORMS, Round
from benchmarks._hostile import STRATEGIES, Damage, attack
from benchmarks._report import (
    Line,
    Trial,
    interleaved,
    line,
    main,
    milliseconds,
    progress,
)
from strategies.guard.core import update_norm
from truststram.records import Float32, view
from truststram.techniques import Guard

# Read by `python -m benchmarks`: other files that the figures depend on.
INPUTS = ("tests/adversaries/replies.py",)

SEED = 1
CLIENTS, SIZE = 20, 1_000_000
IMAGES, BATCH = 1000, 32


class Nothing(FedAvg):
    """Aggregates nothing, so that the time of a layer around it is the layer's own."""

    reads_delta: ClassVar[bool] = True

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[None, MetricRecord | None]:
        """Return nothing."""
        return None, None


def lines(quick: bool) -> Iterator[Line]:
    """Yield all lines; with ``quick`` fewer repeats."""
    federation = Round(CLIENTS, SIZE, SEED)
    yield from share(federation, repeats=3 if quick else 7)
    yield from reading(federation, repeats=10 if quick else 50)
    yield from hostile()


def network() -> nn.Module:
    """Return a convolutional network with 996,206 parameters for 28 x 28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 300),
        nn.ReLU(),
        nn.Linear(300, 10),
    )


def _epoch() -> Trial:
    """Return the trial of one local epoch of one client."""
    torch.manual_seed(SEED)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.rand(IMAGES, 1, 28, 28), torch.randint(10, (IMAGES,))

    def epoch() -> None:
        for rows in torch.split(torch.randperm(IMAGES), BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
            optimizer.step()

    return lambda: epoch


def share(federation: Round, repeats: int) -> Iterator[Line]:
    """Yield the guard's time for a round against the clients' training."""
    progress(f"guard: {CLIENTS} replies x {SIZE:,} and one local epoch")
    torch.set_num_threads(1)
    trials = {"epoch": _epoch()}
    for form in FORMS:
        trials[form] = federation.trial(lambda: Guard(Nothing()), form)
    times = milliseconds(interleaved(trials, repeats))
    for form in FORMS:
        yield line(
            f"guard in a round, {form} replies",
            times[form],
            CLIENTS * times["epoch"],
            goal="ratio < 0.01",
            unit="ms",
            seeds=[SEED],
            note=f"ours: Guard.aggregate_train of {CLIENTS} replies x {SIZE:,} float32 "
            f"around a strategy that does nothing; peer: {CLIENTS} x a client's epoch "
            f"({times['epoch']:.0f} ms): a CNN with 996,206 parameters on "
            f"{IMAGES} random 28x28 images, batch {BATCH}, one thread; best of "
            f"{repeats} in turns",
        )


def reading(federation: Round, repeats: int) -> Iterator[Line]:
    """Yield what it takes to read and check one 4 MB array, against ``np.load``."""
    progress("guard: reading one array")
    arrays = [content.array_records["update"]["delta"] for content in federation.delta]

    def each(read: Callable[[Array], object]) -> Trial:
        def loop() -> None:
            for (
                array
            ) in arrays:  # nothing kept: new memory would cost more than reading
                read(array)

        return lambda: loop

    def viewed(array: Array) -> Float32:
        return view(array, "float32", (SIZE,)).view(np.float32)

    trials = {
        "view": each(viewed),
        "view and norm": each(lambda array: update_norm([viewed(array)])),
        "np.load": each(lambda array: np.load(io.BytesIO(array.data))),
    }
    times = milliseconds(interleaved(trials, repeats))
    for name, what in (
        ("view", "truststram.records.view, which checks header and size"),
        ("view and norm", "the same and strategies.guard.core.update_norm"),
    ):
        yield line(
            f"read one reply: {name}",
            times[name] / len(arrays),
            times["np.load"] / len(arrays),
            goal="ratio >= 1",
            unit="ms",
            seeds=[SEED],
            note=f"one array of {SIZE:,} float32, of {len(arrays)} in turn, best of "
            f"{repeats}; ours: {what}; peer: np.load(BytesIO(the same bytes))",
        )


def hostile() -> Iterator[Line]:
    """Yield how many hostile replies do harm, for each of Flower's strategies."""
    gc.freeze()  # Flower's robust strategies call gc.collect() several times a round
    for name, make in STRATEGIES.items():
        progress(f"guard: hostile replies to {name}")
        ours, stock = attack(make, guarded=True), attack(make, guarded=False)
        yield line(
            f"hostile replies, {name}",
            ours.count,
            stock.count,
            goal="ours <= 0",
            unit=f"of {ours.cases} replies",
            note="ended by an exception + model corrupted (not finite, other names, "
            "dtypes or shapes, or outside the honest replies by 1e-6); 9 honest and 1 "
            f"hostile; Guard({name}): {_sum(ours)}; {name} alone: {_sum(stock)}",
        )


def _sum(damage: Damage) -> str:
    return f"{len(damage.aborts)} + {len(damage.corruptions)}"


if __name__ == "__main__":
    main(__doc__, lines)
