"""A plan with secure sums whose pieces are numpy functions: as ``numpy_plan``, rounded.

A silo sends integers of 1, 20 and 32 bits, its weight and its loss among them, and the
server's step undoes that on their sums.
"""

from __future__ import annotations

import numpy as np

from tests.tff_bridge.numpy_plan import (
    SHAPES,
    NumpyCoordinator,
    NumpySilo,
    leaf,
    plan_of,
)

# Real numbers x are sent as rint(x * SCALE) + HALF: up to 4096, in steps of 2e-6.
HALF, SCALE = 2**31, 2**19
SECURE = {"tff.aggregator": "secure"}


def sealed(shape=(), limit=2**32, dtype="int64", role="aggregator", slot="bitwidth"):
    return leaf(shape, dtype, role=role, slot=slot, limit=limit)


LEAVES = [
    sealed(limit=2, dtype="int32"),  # how many silos
    sealed(role="metric"),
    sealed(limit=2**20, role="metric"),
    *(sealed(shape, role="update") for shape in SHAPES.values()),
    sealed(limit=2**20),
]
SIZE = 4 + 21


def sealed_plan(leaves=LEAVES, **options):
    return plan_of(SECURE, leaves=leaves, **options)


class SealedSilo(NumpySilo):
    def work(self, *arguments, **more):
        loss, examples, *update, weight = super().work(*arguments, **more)
        real = [np.rint(x * np.float64(SCALE)) + HALF for x in (loss, *update)]
        leaves = [1, real[0], examples, *real[1:], weight]
        pairs = zip(leaves, LEAVES, strict=True)
        return [np.asarray(x).astype(form.dtype) for x, form in pairs]


class SealedCoordinator(NumpyCoordinator):
    """Notes in ``sums`` what it was given, for tests."""

    def __init__(self, program: object = None) -> None:
        super().__init__(program)
        self.sums: list[list[np.ndarray]] = []

    def update(self, state, report):
        assert [(str(x.dtype), x.shape) for x in report] == [x.kind for x in LEAVES]
        self.sums.append(report)
        count, loss, examples, *update, weight = report
        real = [
            ((x - count * np.int64(HALF)) / SCALE).astype("f4") for x in (loss, *update)
        ]
        return super().update(state, [real[0], examples, *real[1:], weight])
