"""A computation of a user's own, compiled, gives what numpy gives."""

from __future__ import annotations

import numpy as np
import pytest

from tff_bridge.plan import read_plan

from .plans import STATISTICS

pytest.importorskip("tensorflow", reason="the extra tff is not installed")


def test_moments_of_unequal_silos_are_those_of_all_data():
    from tff_bridge.runtime import PieceFunction, SiloRuntime

    program = read_plan(STATISTICS).programs["analytics"]
    call = {name: PieceFunction(piece, name) for name, piece in program.pieces.items()}
    assert (program.state, program.parameters, program.additive) == ((), (), True)
    silo, rng = SiloRuntime(program), np.random.default_rng(0)
    data = [
        (rng.normal(1, 2, (rows, 30)).astype(np.float32), rng.integers(0, 2, rows))
        for rows in (3, 100, 41)
    ]
    total = call["zero"]()
    for x, y in data:
        order = np.arange(len(x))[None]
        sent = silo.work(x, y, order, 16, call["prepare"]())
        total = call["accumulate"](*total, *sent)
    found = dict(
        zip(
            [leaf.path.rpartition("/")[2] for leaf in program.metrics],
            call["update"](*call["report"](*total)),
            strict=True,
        )
    )
    x, y = (np.concatenate(parts) for parts in zip(*data, strict=True))
    np.testing.assert_allclose(found["mean"], x.mean(0), atol=1e-5)
    np.testing.assert_allclose(found["variance"], x.var(0), atol=1e-4)
    np.testing.assert_array_equal(found["labels"], np.bincount(y))
