"""Which replies are fit to be aggregated: the checks on messages.

Nothing is allocated for values before names, dtypes, shapes and sizes agree with the
model that the server sent; nothing is unpickled, decompressed or evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from truststram.errors import ProtocolError
from truststram.records import record_bytes, records_of

from ..base import NUM_EXAMPLES
from ..update import Model, is_delta, segments
from .core import check_count, check_metrics, update_norm

__all__ = ["Checked", "check_evaluate", "check_train"]

MAX_CONFIG_BYTES = 64 * 2**10
# Differences from the global model are formed in blocks of this many values.
BLOCK = 65_536


@dataclass(frozen=True)
class Checked:
    """What the guard read from a well-formed reply."""

    count: int
    signature: tuple[tuple[str, int], ...]
    norm: float = 0.0


def check_train(
    content: RecordDict, model: Model, most: int, key: str = NUM_EXAMPLES
) -> Checked:
    """Check everything about a train reply that needs no other reply.

    Raises
    ------
    ProtocolError
        With the reason code of the first thing that is wrong.
    """
    metrics = _records(content)
    parts = list(segments(content, model.spec))  # headers only: allocates nothing
    count, signature = _numbers(metrics, most, key)
    if is_delta(content):
        norm = update_norm(values for _, values in parts)  # type: ignore[misc]  # float
    else:
        norm = update_norm(_differences(parts, model))
    return Checked(count, signature, norm)


def check_evaluate(content: RecordDict, most: int, key: str = NUM_EXAMPLES) -> Checked:
    """Check an evaluate reply: one MetricRecord of finite numbers."""
    count, signature = _numbers(_records(content), most, key)
    return Checked(count, signature)


def _records(content: RecordDict) -> MetricRecord:
    """Return the MetricRecord after counting records and bounding their size."""
    metrics = records_of(content, MetricRecord)
    if len(metrics) != 1:
        raise ProtocolError("metric-records", f"{len(metrics)} MetricRecords, not 1")
    size = sum(map(record_bytes, records_of(content, ConfigRecord)))
    if size > MAX_CONFIG_BYTES:
        raise ProtocolError("config-size", f"{size} bytes of configuration")
    return metrics[0]


def _numbers(
    metrics: MetricRecord, most: int, key: str
) -> tuple[int, tuple[tuple[str, int], ...]]:
    count = check_count(metrics.get(key), most)
    return count, check_metrics(metrics)


def _differences(
    parts: list[tuple[slice, NDArray[np.generic]]], model: Model
) -> Iterator[NDArray[np.floating]]:
    """Yield blocks of (client model - global model) without forming it as a whole."""
    for place, values in parts:
        base = model.flat[place]
        for start in range(0, len(base), BLOCK):
            block = slice(start, start + BLOCK)
            yield np.subtract(values[block], base[block])
