"""Any table of numbers with a class label: a CSV or Parquet file per node.

Every file of a federation has the same column names; their order does not matter. The
label column (``data.label``) holds whole numbers from 0 to ``data.classes`` - 1: a node
cannot number text labels by itself, because it may not have all of them.

Each node standardises its features with the mean and standard deviation of its own
training rows. Nothing about the distribution leaves the node; in return the same raw
value can mean different inputs at different nodes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..errors import DataError
from ..job import Job
from ..partition import own_rows
from ..sections import DataKeys
from ..task import Node
from .torch_task import Examples, TorchTask, seeded_model

__all__ = ["Tabular"]

_HIDDEN = 32


@dataclass(frozen=True)
class _Table:
    x: np.ndarray  # float64, (rows, features), features in order of their names
    y: np.ndarray  # int64, (rows,)
    owners: np.ndarray | None  # int64, (rows,)


class Tabular(TorchTask):
    """Classification of the rows of a table by a network with one hidden layer.

    All columns but the label and ``data.id-column`` are features and must be numbers.
    Each node holds out a fifth of its rows; the server has no test data.
    """

    def model(self, job: Job, seed: int) -> nn.Module:
        """Return a network for the columns of the file at ``job.data.path``.

        Only the column names of that file are read.

        Raises
        ------
        DataError
            If there is no such file or it lacks a column that the job names.
        """
        path = _existing(job.data.path)
        inputs = len(_features(path, _column_names(path), job.data))
        return seeded_model(
            lambda: nn.Sequential(
                nn.Linear(inputs, _HIDDEN),
                nn.ReLU(),
                nn.Linear(_HIDDEN, job.data.classes),
            ),
            seed,
        )

    def train_data(self, job: Job, node: Node) -> Examples:
        """Return the node's rows without what it holds out, standardised.

        Raises
        ------
        DataError
            If the file at ``node.data_path`` is missing, cannot be read or holds
            anything but complete numeric rows with valid labels.
        """
        data, train, _ = _rows(job, node)
        return Examples.of(_standardised(data.x[train], data.x[train]), data.y[train])

    def test_data(self, job: Job, node: Node | None) -> Examples | None:
        """Return what ``node`` holds out, standardised as its training rows."""
        if node is None:
            return None
        data, train, held_out = _rows(job, node)
        if len(held_out) == 0:
            return None
        x = _standardised(data.x[held_out], data.x[train])
        return Examples.of(x, data.y[held_out])


def _rows(job: Job, node: Node) -> tuple[_Table, np.ndarray, np.ndarray]:
    """Return the table of ``node``, its training rows and its held-out rows."""
    path = _existing(node.data_path or "")
    state = path.stat()
    table = _table(path, (state.st_mtime_ns, state.st_size), job.data)
    return table, *own_rows(job.data, node, table.y, table.owners)


def _standardised(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    spread = train.std(axis=0)
    # A constant column (but for rounding) says nothing here; it stays at about 0.
    varies = spread > 1e-9 * np.abs(train).max(axis=0)
    scaled: np.ndarray = (x - train.mean(axis=0)) / np.where(varies, spread, 1)
    return scaled


def _existing(path: str) -> Path:
    if not path:
        raise DataError(
            "The task tabular needs a .csv or .parquet file: set data.path in a "
            "simulation and on the server, the node's own data path on a node."
        )
    file = Path(path)
    if file.suffix not in {".csv", ".parquet"}:
        raise DataError(f"{path}: expected a file that ends in .csv or .parquet.")
    # Also keeps out URLs, which pandas would download.
    if not file.is_file():
        raise DataError(f"{path}: no such file.")
    return file


def _column_names(path: Path) -> list[str]:
    """Return the column names of a file without reading its rows."""
    return [str(name) for name in _read(path, names_only=True).columns]


def _read(path: Path, *, names_only: bool = False) -> Any:
    """Return a file as a pandas frame, without its rows if ``names_only``."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".csv":
            rows = 0 if names_only else None
            return pd.read_csv(path, nrows=rows, low_memory=False)
        table = (
            pq.read_schema(path).empty_table() if names_only else pq.read_table(path)
        )
        # What pandas wrote about itself must not turn columns into an index.
        return table.to_pandas(ignore_metadata=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read ({reason}).") from error


def _features(path: Path, names: list[str], job_data: DataKeys) -> list[str]:
    """Return the sorted names of the feature columns."""
    special = {"data.label": job_data.label, "data.id-column": job_data.id_column}
    for key, column in special.items():
        if column not in names and (column or key == "data.label"):
            raise DataError(f"{key} = {column!r}: {path} has no such column.")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have the same name.")
    if any(name.startswith(("Unnamed: ", "__index_level_")) for name in names):
        raise DataError(
            f"{path}: a column has no name; is it a row number? Save without index."
        )
    features = sorted(set(names) - set(special.values()))
    if not features:
        raise DataError(f"{path}: there is no column beside the label and the id.")
    return features


# Keyed by time and size too: a file that changed is read again.
@functools.lru_cache(maxsize=2)
def _table(path: Path, version: tuple[int, int], job_data: DataKeys) -> _Table:
    """Read and check a whole file."""
    import pandas as pd

    features = _features(path, _column_names(path), job_data)
    frame = _read(path)
    frame.columns = [str(name) for name in frame.columns]
    if len(frame) == 0:
        raise DataError(f"{path}: there are no rows.")
    for name in frame.columns:
        if missing := int(frame[name].isna().sum()):
            raise DataError(f"{path}: column {name!r} is empty in {missing} rows.")
    types = pd.api.types
    if text := [n for n in features if not types.is_numeric_dtype(frame[n])]:
        raise DataError(f"{path}: columns that are not numbers: {str(text)[1:-1]}.")
    x = frame[features].to_numpy(np.float64)
    usable = (np.abs(x) <= np.finfo(np.float32).max).all(axis=0)
    if not usable.all():
        name = features[int(np.argmin(usable))]
        raise DataError(f"{path}: column {name!r} has infinite or too large values.")
    owners = None
    if job_data.id_column:
        owners = pd.factorize(frame[job_data.id_column], sort=True)[0].astype(np.int64)
    return _Table(x, _labels(path, frame[job_data.label], job_data), owners)


def _labels(path: Path, column: Any, job_data: DataKeys) -> np.ndarray:
    """Return the labels as int64, if they are classes of the job."""
    import pandas as pd

    expected = (
        f"expected whole numbers from 0 to data.classes - 1 = {job_data.classes - 1}"
    )
    where = f"data.label = {job_data.label!r}: {path}"
    if not pd.api.types.is_integer_dtype(column):
        raise DataError(
            f"{where} holds {column.dtype} values; {expected} (a node cannot number "
            "other labels by itself: it may not have all of them)."
        )
    if column.min() < 0 or column.max() >= job_data.classes:
        raise DataError(f"{where} holds {column.min()} to {column.max()}; {expected}.")
    labels: np.ndarray = column.to_numpy(np.int64)
    return labels
