"""The training program of a plan as a round of ours: which leaf is what."""

from __future__ import annotations

from functools import cached_property

from .leaves import WorkLayout, size
from .manifest import Leaf, Program
from .part import Part
from .plan import Plan
from .sealed import SealedLayout
from .sealed import obstacles as sealed_obstacles

__all__ = ["Training"]

# Counts that an aggregator of the plan keeps (of clipped updates and the like) are few
# and small: they travel as metrics.
MAX_SUM = 64
# Nobody needs more in a round; a plan that asks for them would only hold silos up.
MAX_EPOCHS = 1000


class Training(Part):
    """A plan whose training can be a round of ours; make it with :meth:`of`.

    ``prepared`` begins with the model's arrays.
    """

    name = "train"

    @staticmethod
    def obstacles(plan: Plan) -> list[str]:
        """Return why the plan's training is not a round of ours; empty if it is."""
        return _obstacles(plan)

    @property
    def epochs(self) -> int:
        """Passes over the local data in a round."""
        return int(self.plan.job["train.local-epochs"])

    @cached_property
    def sealed(self) -> SealedLayout | None:
        """What the integers mean that ``work`` sends; None if it sends an update."""
        return SealedLayout(self.program.sent) if _seals(self.program) else None

    @cached_property
    def layout(self) -> WorkLayout:
        """What the leaves of ``work`` mean, in a plan that sends an update."""
        sent = self.program.sent
        update = (*_places(sent, "update"), *_places(sent, "gradient"))
        weights = _places(sent, "weight")
        used = {*update, *weights}
        uniform = self.plan.job["tff.weighting"] == "uniform"
        return WorkLayout(
            leaves=sent,
            update=update,
            weights=weights,
            sums=tuple(i for i in range(len(sent)) if i not in used),
            counted=1 if uniform else self.epochs,
        )

    @property
    def two_vectors(self) -> bool:
        """Whether silos send gradients beside their updates (mime-lite)."""
        return not self.sealed and bool(_places(self.program.sent, "gradient"))

    @property
    def counts(self) -> bool:
        """Whether the plan's aggregator counts something over silos, in clear."""
        return not self.sealed and bool(_places(self.program.sent, "aggregator"))


def _obstacles(plan: Plan) -> list[str]:
    if "train" not in plan.programs:
        found = ", ".join(plan.programs)
        return [f"the plan has no training, only {found}"]
    if plan.privacy is not None:
        return [
            "the plan adds its own noise, which is floating point and not in our "
            "ledger. Compile it without tff.aggregator = dp and set privacy.mechanism"
        ]
    program = plan.programs["train"]
    seals = _seals(program)
    reasons = sealed_obstacles(program.sent) if seals else _of_update(plan)
    return [*reasons, *_of_exchange(plan)]


def _seals(program: Program) -> bool:
    """Return whether silos send integers for secure sums."""
    return any(leaf.slot != "accumulate" for leaf in program.sent)


def _of_update(plan: Plan) -> list[str]:
    """Return why our layers could not read what silos send as an update."""
    program, reasons = plan.programs["train"], []
    sent = program.sent
    if _places(sent, "encoded"):
        return [
            "the plan encodes updates by itself, so that no layer could read them. "
            "Compile it without tff.aggregator = compression and set compression.codec"
        ]
    if not program.additive:
        reasons.append("the plan does not add up what silos send")
    shapes = list(plan.parameters.values())
    update, gradient = (
        [sent[i] for i in _places(sent, role)] for role in ("update", "gradient")
    )
    if _kinds(update) != _kinds_of(shapes) or not _places(sent, "weight"):
        reasons.append("the plan's silos do not send an update of the model, weighted")
    if gradient and _kinds(gradient) != _kinds_of(shapes):
        reasons.append("the plan's silos send other gradients than the model's")
    if any(size(x) > MAX_SUM for x in sent if x.role in ("metric", "aggregator")):
        reasons.append(
            f"the plan adds up more than {MAX_SUM} numbers beside the update"
        )
    return reasons


def _of_exchange(plan: Plan) -> list[str]:
    """Return why silos could not be sent the model, or not use their data."""
    program, reasons = plan.programs["train"], []
    shapes = list(plan.parameters.values())
    if plan.job["train.local-epochs"] > MAX_EPOCHS:
        reasons.append(f"the plan passes over the data more than {MAX_EPOCHS} times")
    prepared = program.pieces["prepare"].outputs
    if _kinds(prepared[: len(shapes)]) != _kinds_of(shapes):
        reasons.append("the plan does not send the model to the silos as it is")
    inputs = program.pieces["work"].inputs
    if program.data != 1 or len(inputs[0].elements) != 2:
        reasons.append("the plan takes other data than batches of (x, y)")
    others = [*program.state, *prepared, *program.sent]
    if any(leaf.dtype == "string" or None in leaf.shape for leaf in others):
        reasons.append("the plan exchanges texts or arrays without a fixed size")
    return reasons


def _places(sent: tuple[Leaf, ...], role: str) -> tuple[int, ...]:
    return tuple(i for i, leaf in enumerate(sent) if leaf.role == role)


def _kinds(leaves: list[Leaf] | tuple[Leaf, ...]) -> list[tuple[str, object]]:
    return [leaf.kind for leaf in leaves]


def _kinds_of(shapes: list[tuple[int, ...]]) -> list[tuple[str, object]]:
    return [("float32", shape) for shape in shapes]
