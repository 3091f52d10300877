"""The atomic record of a finished round, from which a run continues after any death.

File format: one safetensors file a round, named ``round-000012-<16 hex of its
sha256>.safetensors``. Tensors are the model's arrays and those in the layers' states;
the metadata entry ``record`` is JSON with everything else, in which
``{"$tensor": key}`` stands for an array. Nothing is pickled.

Guarantees
----------
A record is complete or absent: it is written to a temporary file, fsynced, renamed, and
the folder is fsynced. The name holds the hash of the bytes, so damage is detected; then
the record before it is used, and the caller is told. The last two records are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from truststram import durable
from truststram.errors import CheckpointError
from truststram.records import pack, view

__all__ = ["RoundRecord", "latest", "load_model", "save_model", "write"]

FORMAT = 1
KEPT = 2
NAME = re.compile(r"round-(\d{6,})-([0-9a-f]{16})\.safetensors")
Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class RoundRecord:
    """Everything that the rounds after this one depend on.

    Attributes
    ----------
    round : int
        Last finished round; 0 for the initial model.
    arrays : ArrayRecord
        The global model after it.
    job : dict
        The flat configuration.
    layers : list
        State of every layer of the strategy, outermost first.
    report : dict
        The round's report, so that its event can be written again.
    best : dict
        Best round so far: round, metric, value; or empty.
    failed : int
        Rounds in a row without a valid reply.
    """

    round: int
    arrays: ArrayRecord
    job: dict[str, Any]
    layers: list[Any] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    failed: int = 0


def write(folder: Path, record: RoundRecord) -> Path:
    """Make ``record`` durable and remove all but the last two.

    Raises
    ------
    CheckpointError
        If the disk is full or the folder cannot be written; earlier records are intact.
    """
    tensors = {f"model/{name}": _values(a) for name, a in record.arrays.items()}
    rest = {k: v for k, v in vars(record).items() if k != "arrays"}
    # safetensors sorts its tensors: the order of the model is kept here.
    text = json.dumps(
        {"format": FORMAT, "names": list(record.arrays), **_packed(rest, tensors, "s")},
        allow_nan=False,
    )
    data = save_tensors(tensors, {"record": text})
    digest = hashlib.sha256(data).hexdigest()[:16]
    path = folder / f"round-{record.round:06d}-{digest}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_durably(path, data)
    except OSError as error:
        raise CheckpointError(
            f"The record of round {record.round} cannot be written to {folder}: "
            f"{error.strerror}. Free space or fix permissions, then resume the run."
        ) from error
    for old in _records(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def latest(folder: Path, damaged: Callable[[str], object]) -> RoundRecord | None:
    """Return the newest record that is whole, or None if there is none.

    Parameters
    ----------
    folder : Path
    damaged : callable
        Told the name of every newer record that is not whole.
    """
    for path in _records(folder):
        try:
            return _read(path)
        except (CheckpointError, OSError):
            damaged(path.name)
    return None


def save_model(path: Path, arrays: ArrayRecord) -> None:
    """Write a model as a plain safetensors file, atomically."""
    tensors = {name: _values(array) for name, array in arrays.items()}
    _write_durably(path, save_tensors(tensors, {"format": "pt"}))


def load_model(path: Path) -> ArrayRecord:
    """Read what :func:`save_model` wrote."""
    with safe_open(str(path), framework="numpy") as file:
        return ArrayRecord({k: pack(file.get_tensor(k)) for k in file.keys()})  # noqa: SIM118  # not a dict


def _read(path: Path) -> RoundRecord:
    data = path.read_bytes()
    match = NAME.fullmatch(path.name)
    if match is None or hashlib.sha256(data).hexdigest()[:16] != match[2]:
        raise CheckpointError(f"{path.name} is damaged")
    with safe_open(str(path), framework="numpy") as file:
        content = json.loads(file.metadata()["record"])
    if content.pop("format") != FORMAT:
        raise CheckpointError(f"{path.name} was written by another version")
    tensors = load_tensors(data)
    names = content.pop("names")
    arrays = ArrayRecord({name: pack(tensors[f"model/{name}"]) for name in names})
    return RoundRecord(arrays=arrays, **_unpacked(content, tensors))


def _records(folder: Path) -> list[Path]:
    """Return the record files, newest round first."""
    found = [p for p in folder.glob("round-*.safetensors") if NAME.fullmatch(p.name)]
    # A round that ran again after a resume has two names: the later file counts.
    age = {p: (int(p.name.split("-")[1]), p.stat().st_mtime_ns) for p in found}
    return sorted(found, key=lambda p: age[p], reverse=True)


def _write_durably(path: Path, data: bytes) -> None:
    durable.replace(path, [data], partial=path.with_suffix(f".tmp{os.getpid()}"))


def _values(array: Array) -> NDArray[np.generic]:
    return _contiguous(view(array, array.dtype, tuple(array.shape)))


def _contiguous(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(values).reshape(values.shape)  # keeps scalars scalar


def _packed(value: Any, tensors: Tensors, path: str) -> Any:
    """Replace arrays in a tree of JSON values by references into ``tensors``."""
    if isinstance(value, np.ndarray):
        tensors[path] = _contiguous(value)
        return {"$tensor": path}
    if isinstance(value, ArrayRecord):
        arrays = {name: _values(array) for name, array in value.items()}
        return {"$arrays": list(_packed(arrays, tensors, path).items())}
    if isinstance(value, Mapping):
        return {k: _packed(v, tensors, f"{path}/{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _unpacked(value: Any, tensors: Tensors) -> Any:
    if isinstance(value, list):
        return [_unpacked(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$arrays" in value:
        return ArrayRecord(
            {k: pack(_unpacked(v, tensors)) for k, v in value["$arrays"]}
        )
    return {k: _unpacked(v, tensors) for k, v in value.items()}
