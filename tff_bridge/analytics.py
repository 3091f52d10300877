"""A computation of a user's own as one exchange: statistics instead of a model.

Such a plan has the program ``analytics``, compiled from a ``tff.federated_computation``
(the key ``tff.computation``). There is nothing to train, so there are no rounds, no
model and no evaluation: every silo runs ``work`` once on its private data, the server
adds the results up with the plan's own ``accumulate``, and ``report`` and ``update``
make the result of the sums.

Guarantees
----------
Trust: the silos' raw data stay there. The server sees what each silo's ``work`` returns
(the computation's sums over that silo's rows), and the result is exact: there is no
noise, and a silo that lies moves the result as far as it likes. No layer can change
this, because all of them are about updates of a model: :func:`conflicts` refuses them,
on the server before the run and in the silo before it answers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from truststram.errors import ConfigError
from truststram.job import Job
from truststram.sections import ServerKeys

from .leaves import size
from .manifest import Program
from .part import Part
from .plan import Plan
from .training import Training

__all__ = ["Analytics", "check_alone", "checked", "conflicts", "kind_of"]

# A result is an event of the run, and a part of its report.
MAX_RESULT = 100_000


class Analytics(Part):
    """A plan whose computation can be run over Flower; make it with :meth:`of`.

    ``prepared`` is often nothing.
    """

    name = "analytics"

    @staticmethod
    def obstacles(plan: Plan) -> list[str]:
        """Return why the computation cannot be run; empty if it can."""
        return _obstacles(plan)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each leaf of the result: its place in the computation's result."""
        return _names(self.program)


def _names(program: Program) -> tuple[str, ...]:
    places = [leaf.path.partition("/")[2] for leaf in program.metrics]
    return tuple(place.replace("/", ".") or "result" for place in places)


def checked(plan: Plan) -> Training | Analytics:
    """Return what a plan is for.

    Raises
    ------
    ConfigError
        One line for each reason why it cannot be run over Flower.
    """
    return kind_of(plan).of(plan)


def kind_of(plan: Plan) -> type[Training] | type[Analytics]:
    """Return the part that a plan is for."""
    return Analytics if Analytics.name in plan.programs else Training


def _obstacles(plan: Plan) -> list[str]:
    program, reasons = plan.programs["analytics"], []
    if any(leaf.slot != "accumulate" for leaf in program.sent):
        reasons.append(
            "the computation asks for a secure sum of integers, which is there for "
            "training only. Use tff.federated_sum; the server then sees every silo's "
            "sums"
        )
    data = program.pieces["work"].inputs[: program.data]
    if program.data != 1 or len(data[0].elements) != 2:
        reasons.append("the computation takes other data than batches of (x, y)")
    prepared, result = program.pieces["prepare"].outputs, program.metrics
    others = [*program.state, *prepared, *program.sent, *result]
    if any(leaf.dtype == "string" or None in leaf.shape for leaf in others):
        reasons.append("the computation has texts or arrays without a fixed size")
    elif sum(map(size, result)) > MAX_RESULT:
        reasons.append(f"the result is more than {MAX_RESULT:,} numbers")
    names = _names(program)
    if not names or len(set(names)) < len(names):
        reasons.append("the computation has no result, or two parts of one name")
    size_of_batch = plan.job.get("train.batch-size")
    if type(size_of_batch) is not int or size_of_batch < 1:
        reasons.append("the plan does not say how many rows are a batch")
    return reasons


# (whether it applies, what and why, what to do instead)
_CONFLICTS: tuple[tuple[Callable[[Job], bool], str], ...] = (
    (
        lambda job: job.privacy.on,
        "privacy.mechanism: the computation's sums have no bound that a silo's part "
        "could be clipped to, so noise would promise nothing. Remove it",
    ),
    (
        lambda job: job.secure.on,
        "secure.scheme: secure sums are of bounded updates, not of sums of any size. "
        "Remove it: the server sees what each silo sends",
    ),
    (
        lambda job: job.robust.rule != "mean",
        "robust.rule: a sum is not a vote, and honest silos' sums differ. Remove it",
    ),
    (
        lambda job: job.anomaly.enabled == "on",
        "anomaly.enabled: nodes are judged over rounds, and there is one. Remove it",
    ),
    (
        lambda job: job.compression.on,
        "compression: codecs lose a part of each update, sums must be exact. Remove it",
    ),
    (
        lambda job: job.adversary.kind != "none",
        "adversary.kind: the attacks are on updates of a model. Remove it",
    ),
    (
        lambda job: job.tff.mixed,
        "tff.mixed: torch silos cannot run the computation. Remove it",
    ),
    (
        lambda job: job.server.average != ServerKeys().average,
        "server.average: there are no models of rounds to be averaged. Remove it",
    ),
    (
        lambda job: job.train.rounds != 1,
        "train.rounds: a computation is one exchange. Set train.rounds = 1",
    ),
    (
        lambda job: job.round.evaluate != "none",
        "round.evaluate: there is no model. Set round.evaluate = none",
    ),
)


def conflicts(job: Job) -> list[str]:
    """Return a line for each setting that a computation cannot have."""
    return [line for applies, line in _CONFLICTS if applies(job)]


def check_alone(job: Job) -> None:
    """Refuse a job whose settings a computation cannot have.

    Raises
    ------
    ConfigError
        One line for each of them.
    """
    if lines := conflicts(job):
        raise ConfigError("\n".join(f"tff.plan with {line}." for line in lines))
