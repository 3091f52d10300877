"""The manifest of a plan: what its pieces take and return, and how they fit together.

A manifest is JSON text from outside: its size is bounded, each value is checked for
type and range, unknown keys are refused, and the pieces must chain as
:mod:`tff_bridge.plan` describes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from truststram.errors import ProtocolError

from .checked_json import (
    MAX_ENTRIES,
    a_list,
    a_mapping,
    a_text,
    an_integer,
    an_object,
    parsed,
    typed,
    wrong,
)
from .pieces import PIECES, ROLES, SLOTS, Leaf, Piece, Program, check_pieces

__all__ = [
    "PIECES",
    "ROLES",
    "SLOTS",
    "Leaf",
    "Parts",
    "Piece",
    "Program",
    "decode",
    "encode",
    "with_graphs",
]

NAME = "plan.json"
WEIGHTS = "weights.safetensors"
FORMAT, VERSION = "truststram-tff-plan", 1
MAX_MANIFEST = 1 << 22
MAX_ELEMENTS = 1 << 27

PROGRAMS = ("train", "evaluate", "analytics")
DTYPES = (
    *("float32", "float64", "float16", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "bool", "string"),
)
_TENSOR = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./>-]{0,500}:[0-9]{1,5}")
_OPERATION = re.compile(r"([A-Za-z0-9_.][A-Za-z0-9_./>-]{0,500})?")
# What is read of a job that has a training; PlanKeys and the ordinary keys.
_WORDS = ("server.optimizer", "tff.algorithm", "tff.aggregator")
_NUMBERS = ("train.lr", "train.momentum", "server.lr", "server.momentum")
_COUNTS = ("train.local-epochs", "train.batch-size")
_WEIGHTING = re.compile("examples|uniform")
MAX_COUNT = (1 << 31) - 1
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Parts:
    """A manifest's content."""

    job: dict[str, Any]
    built_with: dict[str, str]
    programs: dict[str, Program]
    parameters: dict[str, tuple[int, ...]]
    privacy: dict[str, Any] | None
    files: dict[str, tuple[int, str]]


def encode(*, programs: Mapping[str, Program], **other: Any) -> bytes:
    """Return the manifest of a new plan: canonical JSON."""
    content = {"format": FORMAT, "version": VERSION, **other}
    content["programs"] = {name: _program_json(p) for name, p in programs.items()}
    return json.dumps(content, sort_keys=False, separators=(",", ":")).encode()


def _program_json(program: Program) -> dict[str, Any]:
    return {
        "pieces": {
            name: {
                "inputs": [_leaf_json(leaf) for leaf in piece.inputs],
                "outputs": [_leaf_json(leaf) for leaf in piece.outputs],
                "initialize": piece.initialize,
                "token": piece.token,
            }
            for name, piece in program.pieces.items()
        },
        "data": program.data,
        "additive": program.additive,
        "parameters": list(program.parameters),
    }


def _leaf_json(leaf: Leaf) -> dict[str, Any]:
    found: dict[str, Any] = {"path": leaf.path, "tensor": leaf.tensor}
    found |= {"dtype": leaf.dtype, "shape": list(leaf.shape)}
    if leaf.elements:
        found["elements"] = [_leaf_json(element) for element in leaf.elements]
    if leaf.role:
        found["role"] = leaf.role
    if leaf.slot != "accumulate":
        found |= {"slot": leaf.slot, "limit": leaf.limit}
    return found


def decode(content: bytes) -> Parts:
    """Return the content of an untrusted manifest, without graphs.

    Raises
    ------
    ProtocolError
        ``plan-manifest``, ``plan-size`` or ``plan-pieces``.
    """
    if len(content) > MAX_MANIFEST:
        raise ProtocolError("plan-size", f"a manifest has at most {MAX_MANIFEST} bytes")
    raw = parsed(content)
    keys = ("format", "version", "job", "built_with", "programs", "parameters")
    top = an_object(raw, (*keys, "privacy", "files"))
    if top["format"] != FORMAT or top["version"] != VERSION:
        raise wrong(f"not version {VERSION} of {FORMAT}")
    parameters = {
        a_text(name): _shape(shape, fixed=True)
        for name, shape in a_mapping(top["parameters"]).items()
    }
    parts = Parts(
        job=_job(top["job"]),
        built_with={
            a_text(k): a_text(v) for k, v in a_mapping(top["built_with"]).items()
        },
        programs={n: _program(p) for n, p in a_mapping(top["programs"]).items()},
        parameters=parameters,
        privacy=None if top["privacy"] is None else a_mapping(top["privacy"]),
        files={a_text(n): _file(entry) for n, entry in a_mapping(top["files"]).items()},
    )
    if not parts.programs or not set(parts.programs) <= set(PROGRAMS):
        raise wrong(f"programs are some of {', '.join(PROGRAMS)}")
    if "train" in parts.programs or not parts.job.get("tff.computation"):
        _check_training(parts.job)
    for name, program in parts.programs.items():
        check_pieces(name, program, list(parameters.values()))
    return parts


def with_graphs(parts: Parts, files: Mapping[str, bytes]) -> dict[str, Program]:
    """Return the programs with the graphs from ``files``, which must all be used.

    Raises
    ------
    ProtocolError
        ``plan-file``.
    """
    expected = {f"{n}/{p}.pb" for n, q in parts.programs.items() for p in q.pieces}
    if set(files) - {WEIGHTS} != expected:
        raise ProtocolError("plan-file", "the graphs are not those of the programs")
    return {
        name: replace(
            program,
            pieces={
                piece: replace(made, graph=files[f"{name}/{piece}.pb"])
                for piece, made in program.pieces.items()
            },
        )
        for name, program in parts.programs.items()
    }


def _job(raw: Any) -> dict[str, Any]:
    """Return a job's keys: names and plain values, one of them the task's name."""
    found = a_mapping(raw)
    for name, value in found.items():
        a_text(name)
        if isinstance(value, str):
            a_text(value)
        elif not isinstance(value, int | float) or not math.isfinite(value):
            raise wrong("a job has texts, finite numbers and truth values")
    a_text(found.get("task.name"))
    a_text(found.get("tff.computation", ""))
    return found


def _check_training(job: Mapping[str, Any]) -> None:
    """Check the keys of a training: everybody may read them then."""
    for name in _WORDS:
        a_text(job.get(name))
    a_text(job.get("tff.weighting"), _WEIGHTING)
    for name in _NUMBERS:
        if type(job.get(name)) not in (int, float):
            raise wrong(f"the job's {name} is no number")
    for name in _COUNTS:
        an_integer(job.get(name), 1, MAX_COUNT)


def _program(raw: Any) -> Program:
    made = an_object(raw, ("pieces", "data", "additive", "parameters"))
    pieces = an_object(made["pieces"], PIECES)
    work_inputs = len(a_list(a_mapping(pieces["work"]).get("inputs")))
    return Program(
        pieces={name: _piece(pieces[name], name) for name in PIECES},
        data=an_integer(made["data"], 1, work_inputs),
        additive=typed(made["additive"], bool),
        parameters=tuple(
            an_integer(i, 0, MAX_ENTRIES) for i in a_list(made["parameters"])
        ),
    )


def _piece(raw: Any, name: str) -> Piece:
    made = an_object(raw, ("inputs", "outputs", "initialize", "token"))
    return Piece(
        inputs=tuple(_leaf(leaf) for leaf in a_list(made["inputs"])),
        outputs=tuple(_leaf(x, sent=name == "work") for x in a_list(made["outputs"])),
        initialize=a_text(made["initialize"], _OPERATION),
        token=a_text(made["token"], _TENSOR) if made["token"] else "",
    )


def _leaf(raw: Any, sent: bool = False, element: bool = False) -> Leaf:
    """Return one leaf; only ``sent`` ones have role and slot."""
    more = ("role",) if sent else ()
    made = an_object(
        raw,
        ("path", "tensor", "dtype", "shape", *more),
        ("slot", "limit") if sent else ("elements",),
    )
    elements = tuple(_leaf(x, element=True) for x in a_list(made.get("elements", [])))
    dtype = a_text(made["dtype"])
    if dtype not in (DTYPES if element or not elements else ("dataset",)):
        raise wrong(f"dtype {dtype[:20]!r}")
    slot, limit = made.get("slot", "accumulate"), made.get("limit", 0)
    role = made.get("role", "")
    if slot not in SLOTS or role not in (ROLES if sent else ("",)):
        raise wrong("an unknown role or slot")
    if slot == "accumulate" and "limit" in made:
        raise wrong("a limit of what is not in a secure sum")
    if slot != "accumulate" and dtype not in ("int32", "int64"):
        raise wrong("a secure sum of what is no integer")
    return Leaf(
        path=a_text(made["path"]),
        tensor="" if element else a_text(made["tensor"], _TENSOR),
        dtype=dtype,
        shape=_shape(made["shape"], fixed=sent),
        elements=elements,
        role=role,
        slot=slot,
        limit=an_integer(limit, 1, 1 << 62) if slot != "accumulate" else 0,
    )


def _shape(raw: Any, fixed: bool) -> tuple[Any, ...]:
    sizes = a_list(raw)
    for size in sizes:
        if size is None and not fixed:
            continue
        an_integer(size, 0, MAX_ELEMENTS)
    if len(sizes) > 16 or math.prod(n for n in sizes if n) > MAX_ELEMENTS:
        raise ProtocolError("plan-size", f"an array of more than {MAX_ELEMENTS} values")
    return tuple(sizes)


def _file(raw: Any) -> tuple[int, str]:
    entry = a_list(raw)
    if len(entry) != 2:
        raise wrong("a file has a size and a hash")
    return an_integer(entry[0], 0, 1 << 40), a_text(entry[1], _HASH)
