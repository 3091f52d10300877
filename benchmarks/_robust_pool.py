"""Federations trained on all cores, for the benchmarks of the robust rules."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks._report import progress
from benchmarks._robust_data import VARIABLE
from benchmarks._robust_grid import Federation, Outcome
from benchmarks._robust_runs import simulate

__all__ = ["Task", "run", "take_folder"]

PROCESSES = 2

# A federation, and the (rule, attack) pairs that are wanted of it.
Task = tuple[Federation, list[tuple[str, str]]]


def run(title: str, tasks: Sequence[Task]) -> Iterator[list[Outcome]]:
    """Yield the outcomes of all tasks, which share the processor's cores."""
    workers = min(PROCESSES, len(tasks), os.cpu_count() or 1)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, fresh, initializer=_one_thread) as pool:
        found = pool.map(_simulate, tasks)
        for (federation, _), outcomes in zip(tasks, found, strict=True):
            progress(
                f"{title}: {federation.cell}, seed {federation.seed}, "
                f"{federation.network}: {len(outcomes)} models"
            )
            yield outcomes


def take_folder() -> None:
    """Take ``--data`` from the command line; the rest is every benchmark's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data")
    found, rest = parser.parse_known_args()
    if found.data is not None:
        os.environ[VARIABLE] = found.data  # the processes inherit it
    sys.argv[1:] = rest


def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _simulate(task: Task) -> list[Outcome]:
    with threadpool_limits(1), np.errstate(over="ignore"):
        return simulate(*task)
