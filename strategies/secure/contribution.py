"""What the functions inside a secure sum's mod report: the update, and numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from truststram.errors import ProtocolError
from truststram.records import Float32, records_of, view

from ..base import NUM_EXAMPLES
from ..update import DELTA, UPDATE, Model, read_delta

__all__ = ["numbers_of", "update_of"]

MOST = 2**62  # examples; what "infinitely many" counts as


def update_of(found: RecordDict, asked: ArrayRecord) -> Float32:
    """Return the update, as long as the mods inside have made it, shape (n,).

    Parameters
    ----------
    found : RecordDict
        Their reply.
    asked : ArrayRecord
        The model that they were given.
    """
    record = found.get(UPDATE)
    if not isinstance(record, ArrayRecord):
        return read_delta(found, Model(asked))
    array = record[DELTA]
    if len(array.shape) != 1:
        raise ProtocolError("shape", "an update is one vector")
    values = view(array, "float32", tuple(array.shape))
    return np.ascontiguousarray(values, np.float32)


def numbers_of(content: RecordDict) -> tuple[Mapping[str, float], int]:
    """Return the scalar training metrics and the number of examples (1 if unknown)."""
    metrics: dict[str, float] = {}
    for record in records_of(content, MetricRecord):
        metrics |= {k: float(v) for k, v in record.items() if not isinstance(v, list)}
    examples = metrics.pop(NUM_EXAMPLES, 1.0)
    # Not a number is 0, too; more than MOST is clipped further on in any case.
    return metrics, int(min(examples, MOST)) if examples >= 0 else 0
