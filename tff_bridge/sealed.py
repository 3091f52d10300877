"""Plans whose silos send integers: the secure sums of TensorFlow Federated, exactly.

With ``tff.aggregator = secure`` TFF itself clips, scales and rounds what a silo sends,
its update, its weight, its metrics and the counts that its own clip follows, to
integers in a known range, and hands them to an abstract secure sum (the operator
``federated_secure_sum_bitwidth``), for which TFF has no protocol of its own. Ours is
:mod:`strategies.secure.secagg`: a silo's integers are masked as they are, the server
sees their sums and nothing else of any silo, and gives the sums to the plan's
``update``.

Mathematics
-----------
``work`` returns leaves of integers in ``[0, limit)``. A silo sends them one after the
other as one vector, (n,); the sum over silos is cut into leaves again. Integers are not
rounded again, so that the next state is that of TFF's own computation with an ideal
secure sum, for the same silos.

Guarantees
----------
Those of the secure sum, for everything that a silo sends. The weight of a silo is one
of its integers: silos weigh as the plan says, and a malicious one may choose any weight
and any update within the plan's ranges (TFF's are 2^20 - 1 for weights and metrics; it
clips what is beyond, and metrics called ``...-clipped-count`` tell). Nothing else looks
at the values: layers that read updates are refused (:func:`conflicts`), on the server
before the run and in the silo before it agrees to the plan and before it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from truststram.errors import ConfigError
from truststram.job import Job
from truststram.private_sections import SecureKeys
from truststram.techniques import WholeNumbers, with_integers

from .leaves import Leaves, size
from .manifest import Leaf

__all__ = ["SealedLayout", "check_sealed", "conflicts", "obstacles"]


@dataclass(frozen=True)
class SealedLayout:
    """What the result of ``work`` means in a plan with secure sums.

    Parameters
    ----------
    leaves : tuple of Leaf
        In the order of the result, which is that of the arguments of ``update``.
    """

    leaves: tuple[Leaf, ...]

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(how many values, limit): of neighbours with one limit together."""
        pairs = [(size(leaf), leaf.limit) for leaf in self.leaves if size(leaf)]
        limits = groupby(pairs, key=lambda pair: pair[1])
        return tuple((sum(n for n, _ in same), limit) for limit, same in limits)

    @cached_property
    def size(self) -> int:
        """Number of integers, n."""
        return sum(count for count, _ in self.runs)

    @cached_property
    def bits(self) -> int:
        """Bits of the widest integer of one silo."""
        return max(leaf.bits for leaf in self.leaves)

    def reply(self, leaves: Sequence[NDArray[np.generic]]) -> RecordDict:
        """Return the content of a silo's reply: for a secure sum's mod only.

        The mod checks the range of each value before it masks them.
        """
        flat = [leaf.reshape(-1).astype(np.int64) for leaf in leaves]
        return with_integers(np.concatenate(flat), self.runs)

    def sums_of(self, total: NDArray[np.int64]) -> Leaves:
        """Return the sums of the leaves.

        Parameters
        ----------
        total : int64 array of shape (n,)
            Checked by the secure sum: each value is in the range of a sum.

        Raises
        ------
        ValueError
            For another length.
        """
        if total.shape != (self.size,):
            raise ValueError(f"sums of shape {total.shape}, not {self.size} of them")
        found: Leaves = []
        start = 0
        for leaf in self.leaves:
            values = total[start : start + size(leaf)]
            start += size(leaf)
            found.append(
                values.astype(leaf.dtype).reshape([n or 0 for n in leaf.shape])
            )
        return found


def obstacles(leaves: Sequence[Leaf]) -> list[str]:
    """Return why the integers of a plan cannot be summed; empty if they can."""
    if any(leaf.slot == "accumulate" for leaf in leaves):
        return [
            "the plan sends a part in clear beside the integers of its secure sums. "
            "Compile it with tff.aggregator = secure, which seals everything"
        ]
    if any(leaf.slot == "modulus" for leaf in leaves):
        return [
            "the plan asks for sums modulo a number; masked sums of ours tell the sum "
            "itself, which is more. Compile it with tff.aggregator = secure"
        ]
    try:
        WholeNumbers(SealedLayout(tuple(leaves)).runs, most=1)
    except ValueError as error:
        return [f"the plan's integers do not fit a masked sum of ours: {error}"]
    return []


def _overflows(layout: SealedLayout, most: int) -> bool:
    """Return whether a sum of ``most`` silos leaves the type that ``update`` takes."""
    return any(
        (leaf.limit - 1) * most > np.iinfo(leaf.dtype).max for leaf in layout.leaves
    )


# (whether it applies, what and why, what to do instead)
_CONFLICTS: tuple[tuple[Callable[[Job], bool], str], ...] = (
    (
        lambda job: not job.secure.on,
        "secure.scheme = none: the plan's integers hide nothing until they are masked. "
        "Set secure.scheme = secagg, or compile the plan with aggregator mean",
    ),
    (
        lambda job: job.secure.scheme in ("ckks", "bfv"),
        "secure.scheme = ckks or bfv: they add our quantised updates; the plan's "
        "integers are wider. Set secure.scheme = secagg, or compile the plan with "
        "aggregator mean",
    ),
    (
        lambda job: job.secure.group_size > 0,
        "secure.group-size: the plan's step takes one sum of all silos. Remove it, or "
        "compile the plan with aggregator mean",
    ),
    (
        lambda job: job.secure.clip != SecureKeys().clip,
        "secure.clip: the plan's integers have the plan's own range. Remove it",
    ),
    (
        lambda job: job.robust.rule != "mean",
        "robust.rule: nobody sees the update of a silo, and integers of a plan are no "
        "update. Compile the plan with aggregator mean; with secure.group-size a rule "
        "sees the means of groups",
    ),
    (
        lambda job: job.privacy.on,
        "privacy.mechanism: noise belongs into the values before the plan makes "
        "integers of them, and its counts have no bound. Compile the plan with "
        "aggregator mean",
    ),
    (
        lambda job: job.compression.on,
        "compression: codecs lose a part of each value, and an integer of the plan "
        "means nothing without the rest. Compile the plan with aggregator mean",
    ),
    (
        lambda job: job.adversary.kind != "none",
        "adversary.kind: who attacks is told by updates, which nobody sees. Compile "
        "the plan with aggregator mean",
    ),
    (
        lambda job: job.tff.mixed,
        "tff.mixed: torch silos do not make the plan's integers. Compile the plan with "
        "aggregator mean",
    ),
)


def conflicts(layout: SealedLayout, job: Job) -> list[str]:
    """Return a line for each setting that such a plan cannot have."""
    found = [line for applies, line in _CONFLICTS if applies(job)]
    if _overflows(layout, job.secure.max_cohort):
        found.append(
            f"secure.max-cohort = {job.secure.max_cohort}: the sum of so many silos "
            "does not fit the type that the plan computes with. Lower it"
        )
    return found


def check_sealed(layout: SealedLayout, job: Job) -> None:
    """Refuse a job in which a silo's integers would not be masked, or be read.

    Raises
    ------
    ConfigError
        One line for each setting.
    """
    if lines := conflicts(layout, job):
        raise ConfigError("\n".join(f"tff.plan with {line}." for line in lines))
