"""Bytes on the wire against accuracy: Fashion-MNIST, 20 clients, both directions.

Goal, paired over three seeds: top-k of 10 % with 8 bits sends at least 20 times less
from the nodes, everything counted, and loses at most half a point of accuracy. No
goals: the other codecs and the way down.

50 rounds of 8 local steps; label proportions from Dir(0.5). Every message goes through
the software's mod and layer; bytes are those of Flower's records: arrays, values and
their names, without gRPC. Accuracies are means of the last five rounds on the 10,000
test images, at the usual settings of every codec; nothing was tuned.

``--data DIR``, or TRUSTSTRAM_DATA, names the folder with the original files. Writes a
picture beside the results.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import _results as results
from benchmarks._compression_runs import CNN, Cell, Outcome, simulate
from benchmarks._report import Line, line, main, progress
from benchmarks._robust_data import check
from benchmarks._robust_pool import PROCESSES, _one_thread, take_folder

ROUNDS, ROUNDS_QUICK = 50, 10
SEEDS, SEEDS_QUICK = (1, 2, 3), (0,)
PLAIN, GOAL = Cell(), Cell("topk-q8")
# With three seeds, beside PLAIN: what the software recommends, by size.
MAIN = (
    Cell("q8"),
    GOAL,
    Cell("topk-q8", downlink="q8"),
    Cell("eden-2"),
    Cell("eden-1"),
)
OTHERS = (
    *(Cell("topk-q8", 0.03), Cell("topk"), Cell("topk-shared"), Cell("randk")),
    *(Cell("topk-q8", downlink=down) for down in ("eden-2", "topk-q8")),
)
QUICK = (PLAIN, GOAL, Cell("eden-2", downlink="q8"))

# A federation with its seed, rounds, and whether it is for development.
Task = tuple[Cell, int, int, bool]


def lines(quick: bool) -> Iterator[Line]:
    """Yield all lines; with ``quick`` three federations of a few rounds."""
    check()
    rounds = ROUNDS_QUICK if quick else ROUNDS
    if quick:
        tasks = [(cell, seed, rounds, True) for cell in QUICK for seed in SEEDS_QUICK]
    else:
        tasks = [(c, seed, rounds, False) for c in (PLAIN, *MAIN) for seed in SEEDS]
        tasks += [(cell, SEEDS[0], rounds, False) for cell in OTHERS]
    outcomes = collect(tasks)
    cells = list(dict.fromkeys(outcome.cell for outcome in outcomes))
    for cell in cells:
        found = [o for o in outcomes if o.cell == cell]
        plain = [_plain(outcomes, o.seed) for o in found]
        goal = cell == GOAL and not quick
        yield from of_cell(cell, found, plain, rounds, goal)
    if not quick:
        picture(outcomes, results.ROOT / "benchmarks/results/compression_accuracy.png")


def collect(tasks: Sequence[Task]) -> list[Outcome]:
    """Run the federations, which share the processor's cores."""
    workers = min(PROCESSES, len(tasks), os.cpu_count() or 1)
    fresh = multiprocessing.get_context("spawn")
    found = []
    with ProcessPoolExecutor(workers, fresh, initializer=_one_thread) as pool:
        for outcome in pool.map(_one, tasks):
            progress(
                f"compression_accuracy: {outcome.cell}, seed {outcome.seed}: "
                f"{outcome.accuracy:.2f} %, up {outcome.up:,}, down {outcome.down:,}"
            )
            found.append(outcome)
    return found


def _one(task: Task) -> Outcome:
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with threadpool_limits(1):
        return simulate(*task)


def _plain(outcomes: Sequence[Outcome], seed: int) -> Outcome:
    return next(o for o in outcomes if (o.cell, o.seed) == (PLAIN, seed))


def of_cell(
    cell: Cell,
    found: Sequence[Outcome],
    plain: Sequence[Outcome],
    rounds: int,
    goal: bool,
) -> Iterator[Line]:
    """Yield bytes each way and accuracy of a codec, against messages as they are."""
    seeds = [outcome.seed for outcome in found]
    for way in ("up", "down"):
        ours, peer = (
            float(np.mean([getattr(o, way) for o in group])) for group in (found, plain)
        )
        yield line(
            f"{way}, {cell}",
            ours / 1e6,
            peer / 1e6,
            goal="ratio >= 20" if goal and way == "up" else None,
            unit="MB",
            seeds=seeds,
            note=f"all messages of 20 clients in {rounds} rounds, framing included, "
            f"{CNN.size:,} parameters; peer: not compressed",
        )
    pairs = zip(found, plain, strict=True)
    losses = [theirs.accuracy - ours.accuracy for ours, theirs in pairs]
    accuracy = float(np.mean([o.accuracy for o in found]))
    yield line(
        f"accuracy lost, {cell}",
        float(np.mean(losses)),
        goal="ours <= 0.5" if goal else None,
        unit="points",
        seeds=seeds,
        note=f"mean of the pairs, largest {max(losses):.2f}; accuracy {accuracy:.2f} %",
    )


def picture(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw accuracy against bytes, and the codecs that no other one beats in both."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    cells = list(dict.fromkeys(o.cell for o in outcomes))
    panels = (("from the nodes", ("up",)), ("both ways", ("up", "down")))
    for axes, (title, ways) in zip(figure.subplots(1, 2), panels, strict=True):
        points = []
        for cell in cells:
            group = [o for o in outcomes if o.cell == cell]
            size = np.mean([sum(getattr(o, way) for way in ways) for o in group]) / 1e6
            accuracies = [o.accuracy for o in group]
            points.append((float(size), float(np.mean(accuracies))))
            spread = [
                [points[-1][1] - min(accuracies)],
                [max(accuracies) - points[-1][1]],
            ]
            axes.errorbar(*points[-1], spread, marker="o", capsize=3, color="C0")
            axes.annotate(
                str(cell), points[-1], (4, 4), textcoords="offset points", fontsize=8
            )
        best = pareto(points)
        axes.plot(*zip(*best, strict=True), color="C1", linestyle="--", zorder=0)
        axes.set_xscale("log")
        axes.set_xlabel(f"MB {title}, {ROUNDS} rounds")
        axes.set_ylabel("test accuracy (%)")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (bytes, accuracy) that no smaller one reaches, by size."""
    best: list[tuple[float, float]] = []
    for size, accuracy in sorted(points):
        if not best or accuracy > best[-1][1]:
            best.append((size, accuracy))
    return best


if __name__ == "__main__":
    take_folder()
    main(__doc__, lines)
