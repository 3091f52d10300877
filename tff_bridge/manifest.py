"""The manifest of a plan: what its pieces take and return, and how they fit together.

A manifest is JSON text from outside: its size is bounded, each value is checked for
type and range, unknown keys are refused, and the pieces must chain as
:mod:`tff_bridge.plan` describes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from truststram.errors import ProtocolError

__all__ = [
    "PIECES",
    "ROLES",
    "SLOTS",
    "Leaf",
    "Parts",
    "Piece",
    "Program",
    "canonical_json",
    "decode",
    "encode",
    "with_graphs",
]

NAME = "plan.json"
WEIGHTS = "weights.safetensors"
FORMAT, VERSION = "truststram-tff-plan", 1
MAX_MANIFEST = 1 << 22
MAX_LEAVES = 20_000
MAX_ELEMENTS = 1 << 27

PROGRAMS = ("train", "evaluate", "analytics")
PIECES = (
    *("init", "prepare", "work", "zero", "accumulate", "merge", "report", "update"),
)
SLOTS = ("accumulate", "bitwidth", "max-input", "modulus")
ROLES = ("update", "gradient", "weight", "metric", "encoded", "aggregator")
DTYPES = (
    *("float32", "float64", "float16", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "bool", "string"),
)
_TENSOR = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./>-]{0,500}:[0-9]{1,5}")
_OPERATION = re.compile(r"([A-Za-z0-9_.][A-Za-z0-9_./>-]{0,500})?")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Leaf:
    """One argument or result of a piece: a tensor, or the silo's data set.

    Attributes
    ----------
    path : str
        Where it is in TensorFlow Federated's structure, for people: names and indices.
    tensor : str
        Name of the tensor in the graph (``"Identity_3:0"``).
    dtype : str
        NumPy's name; ``"string"`` for bytes; ``"dataset"`` for a data set, whose
        tensor is a variant.
    shape : tuple of int or None
        None is a size that may vary.
    elements : tuple of Leaf
        Of a data set: dtype and shape of each component of an element (a batch).
    role : str
        Of what ``work`` sends, else empty:

        ``update``
            A parameter's change, or its gradient for fed-sgd, **times the weight** of
            the silo, in the model's order. With differential privacy in the plan it is
            clipped and not weighted.
        ``gradient``
            Mime-lite only: a parameter's gradient at the server's model, times weight.
        ``weight``
            The weight that updates (or gradients) are multiplied by; the first one
            after them.
        ``metric``
            A sum over examples (losses, correct answers, examples).
        ``encoded``
            A parameter's change as a codec of TensorFlow Federated sends it.
        ``aggregator``
            Anything else that the aggregator sums (norms below a quantile, counts of
            clipped updates, results of analytics).
    slot : str
        How ``work``'s leaf is summed: ``accumulate`` (in clear, or by any sum that
        agrees with the piece ``accumulate``), or by a secure sum of integers from 0 to
        ``limit`` - 1: ``bitwidth``, ``max-input``, or ``modulus`` (the sum itself is
        taken modulo ``limit``).
    limit : int
        See ``slot``; 0 for ``accumulate``.
    """

    path: str
    tensor: str
    dtype: str
    shape: tuple[int | None, ...] = ()
    elements: tuple[Leaf, ...] = ()
    role: str = ""
    slot: str = "accumulate"
    limit: int = 0

    @property
    def is_dataset(self) -> bool:
        """Whether it is the silo's data set."""
        return self.dtype == "dataset"

    @property
    def bits(self) -> int:
        """Bits of one value in a secure sum."""
        return (self.limit - 1).bit_length() if self.limit else 0

    @property
    def kind(self) -> tuple[str, tuple[int | None, ...]]:
        """What must agree where one piece's result is another one's argument."""
        return self.dtype, self.shape


@dataclass(frozen=True)
class Piece:
    """A graph and how it is called.

    Attributes
    ----------
    graph : bytes
        ``GraphDef``; empty while a manifest is read alone.
    inputs, outputs : tuple of Leaf
        Flat, depth first.
    initialize : str
        Operation to run before each call; empty: none.
    token : str
        String placeholder to feed with ``""``; empty: none.
    """

    inputs: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    initialize: str = ""
    token: str = ""
    graph: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Program:
    """The pieces of one kind of round.

    Attributes
    ----------
    pieces : dict
        :class:`Piece` by name, all of :data:`PIECES`.
    data : int
        How many of ``work``'s first inputs are the silo's data; what ``prepare``
        returns follows.
    additive : bool
        Whether ``accumulate`` adds leaf by leaf, starting at ``zero`` = 0 (probed when
        the plan was compiled). Then any other sum may take its place.
    parameters : tuple of int
        Place of each of the model's parameters among the leaves of the state.
    """

    pieces: dict[str, Piece]
    data: int
    additive: bool
    parameters: tuple[int, ...] = ()

    @cached_property
    def state(self) -> tuple[Leaf, ...]:
        """Leaves of the server's state."""
        return self.pieces["init"].outputs

    @cached_property
    def sent(self) -> tuple[Leaf, ...]:
        """Leaves that each silo sends, with role and slot."""
        return self.pieces["work"].outputs

    @cached_property
    def metrics(self) -> tuple[Leaf, ...]:
        """Leaves that ``update`` returns after the state."""
        return self.pieces["update"].outputs[len(self.state) :]


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
    try:
        raw = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _wrong("it is not JSON") from None
    keys = ("format", "version", "job", "built_with", "programs", "parameters")
    top = _object(raw, (*keys, "privacy", "files"))
    if top["format"] != FORMAT or top["version"] != VERSION:
        raise _wrong(f"not version {VERSION} of {FORMAT}")
    parameters = {
        _text(name): _shape(shape, fixed=True)
        for name, shape in _mapping(top["parameters"]).items()
    }
    parts = Parts(
        job=_mapping(top["job"]),
        built_with={k: _text(v) for k, v in _mapping(top["built_with"]).items()},
        programs={n: _program(p) for n, p in _mapping(top["programs"]).items()},
        parameters=parameters,
        privacy=None if top["privacy"] is None else _mapping(top["privacy"]),
        files={name: _file(entry) for name, entry in _mapping(top["files"]).items()},
    )
    if not parts.programs or not set(parts.programs) <= set(PROGRAMS):
        raise _wrong(f"programs are some of {', '.join(PROGRAMS)}")
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


def check_pieces(
    name: str, program: Program, parameters: Sequence[tuple[int, ...]]
) -> None:
    """Raise ProtocolError ``plan-pieces`` unless the pieces fit each other."""
    p = program.pieces
    state, sent = program.state, program.sent
    clear = [leaf for leaf in sent if leaf.slot == "accumulate"]
    sealed = [x for slot in SLOTS[1:] for x in sent if x.slot == slot]
    total = p["zero"].outputs
    data = p["work"].inputs[: program.data]
    for wrong, what in (
        (bool(p["init"].inputs or p["zero"].inputs), "init and zero take nothing"),
        (not same(p["prepare"].inputs, state), "prepare takes the state"),
        (
            not same(p["work"].inputs[program.data :], p["prepare"].outputs),
            "work takes data and what prepare returns",
        ),
        (list(sent) != [*clear, *sealed], "work's slots are out of order"),
        (not same(p["accumulate"].inputs, [*total, *clear]), "accumulate"),
        (not same(p["accumulate"].outputs, total), "accumulate returns a total"),
        (not same(p["merge"].inputs, [*total, *total]), "merge takes two totals"),
        (not same(p["merge"].outputs, total), "merge returns a total"),
        (not same(p["report"].inputs, total), "report takes a total"),
        (
            not same(p["update"].inputs, [*state, *p["report"].outputs, *sealed]),
            "update takes state, report and secure sums",
        ),
        (not same(p["update"].outputs[: len(state)], state), "update returns a state"),
        (
            program.additive and not same(clear, total),
            "a sum has the leaves of its terms",
        ),
        (
            any(
                x.is_dataset
                for q in p.values()
                for x in (*q.inputs, *q.outputs)
                if x not in data
            ),
            "a data set that is not the silo's",
        ),
        (
            [state[i].kind for i in program.parameters if i < len(state)]
            != [("float32", shape) for shape in parameters[: len(program.parameters)]]
            or len(program.parameters) not in (0, len(parameters)),
            "the state's weights are not the parameters",
        ),
    ):
        if wrong:
            raise ProtocolError("plan-pieces", f"{name}: {what}")


def same(found: Sequence[Leaf], expected: Sequence[Leaf]) -> bool:
    """Return whether two lists of leaves agree in types and shapes."""
    return [leaf.kind for leaf in found] == [leaf.kind for leaf in expected]


def _program(raw: Any) -> Program:
    made = _object(raw, ("pieces", "data", "additive", "parameters"))
    pieces = _object(made["pieces"], PIECES)
    work_inputs = len(_list(_mapping(pieces["work"]).get("inputs")))
    return Program(
        pieces={name: _piece(pieces[name], name) for name in PIECES},
        data=_integer(made["data"], 1, work_inputs),
        additive=_typed(made["additive"], bool),
        parameters=tuple(_integer(i, 0, MAX_LEAVES) for i in _list(made["parameters"])),
    )


def _piece(raw: Any, name: str) -> Piece:
    made = _object(raw, ("inputs", "outputs", "initialize", "token"))
    return Piece(
        inputs=tuple(_leaf(leaf) for leaf in _list(made["inputs"])),
        outputs=tuple(_leaf(x, sent=name == "work") for x in _list(made["outputs"])),
        initialize=_text(made["initialize"], _OPERATION),
        token=_text(made["token"], _TENSOR) if made["token"] else "",
    )


def _leaf(raw: Any, sent: bool = False, element: bool = False) -> Leaf:
    """Return one leaf; only ``sent`` ones have role and slot."""
    more = ("role",) if sent else ()
    made = _object(
        raw,
        ("path", "tensor", "dtype", "shape", *more),
        ("slot", "limit") if sent else ("elements",),
    )
    elements = tuple(_leaf(x, element=True) for x in _list(made.get("elements", [])))
    dtype = _text(made["dtype"])
    if dtype not in (DTYPES if element or not elements else ("dataset",)):
        raise _wrong(f"dtype {dtype[:20]!r}")
    slot, limit = made.get("slot", "accumulate"), made.get("limit", 0)
    role = made.get("role", "")
    if slot not in SLOTS or role not in (ROLES if sent else ("",)):
        raise _wrong("an unknown role or slot")
    if slot != "accumulate" and dtype not in ("int32", "int64"):
        raise _wrong("a secure sum of what is no integer")
    return Leaf(
        path=_text(made["path"]),
        tensor="" if element else _text(made["tensor"], _TENSOR),
        dtype=dtype,
        shape=_shape(made["shape"], fixed=sent),
        elements=elements,
        role=role,
        slot=slot,
        limit=_integer(limit, 1, 1 << 62) if slot != "accumulate" else 0,
    )


def _shape(raw: Any, fixed: bool) -> tuple[Any, ...]:
    sizes = _list(raw)
    for size in sizes:
        if size is None and not fixed:
            continue
        _integer(size, 0, MAX_ELEMENTS)
    if len(sizes) > 16 or math.prod(n for n in sizes if n) > MAX_ELEMENTS:
        raise ProtocolError("plan-size", f"an array of more than {MAX_ELEMENTS} values")
    return tuple(sizes)


def _file(raw: Any) -> tuple[int, str]:
    entry = _list(raw)
    if len(entry) != 2:
        raise _wrong("a file has a size and a hash")
    return _integer(entry[0], 0, 1 << 40), _text(entry[1], _HASH)


def _object(
    raw: Any, keys: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    found = _mapping(raw)
    if not set(keys) <= set(found) <= {*keys, *optional}:
        raise _wrong(f"expected the keys {', '.join(keys)}")
    return found


def _mapping(raw: Any) -> dict[str, Any]:
    return _typed(raw, dict)


def _list(raw: Any) -> list[Any]:
    found = _typed(raw, list)
    if len(found) > MAX_LEAVES:
        raise ProtocolError("plan-size", f"a list of more than {MAX_LEAVES} entries")
    return found


def _text(raw: Any, pattern: re.Pattern[str] | None = None) -> str:
    found = _typed(raw, str)
    if len(found) > 2000 or (pattern and not pattern.fullmatch(found)):
        raise _wrong("a name or text is not as expected")
    return found


def _integer(raw: Any, low: int, high: int) -> int:
    found = _typed(raw, int)
    if not low <= found <= high:
        raise _wrong(f"an integer outside [{low}, {high}]")
    return found


def _typed(raw: Any, kind: type[Any]) -> Any:
    if type(raw) is not kind:
        raise _wrong(f"expected {kind.__name__}, found {type(raw).__name__}")
    return raw


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _wrong(detail: str) -> ProtocolError:
    return ProtocolError("plan-manifest", detail)


def canonical_json(value: object) -> bytes:
    """Return the one JSON text of a value, for hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
