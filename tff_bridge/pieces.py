"""The pieces of a plan: graphs, what they take and return, and how they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from truststram.errors import ProtocolError

__all__ = ["PIECES", "ROLES", "SLOTS", "Leaf", "Piece", "Program", "check_pieces"]

PIECES = (
    *("init", "prepare", "work", "zero", "accumulate", "merge", "report", "update"),
)
SLOTS = ("accumulate", "bitwidth", "max-input", "modulus")
ROLES = ("update", "gradient", "weight", "metric", "encoded", "aggregator")


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
            The global parameter minus the silo's (a direction of ascent, like a
            gradient: the sign is the opposite of our updates'), or its gradient for
            fed-sgd, **times the weight** of the silo, in the model's order. With
            differential privacy in the plan it is clipped and not weighted.
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
