"""Client half of distributed privacy: the integers that leave a node in a secure sum.

A secure sum has a quantiser of its own, which knows nothing of privacy. Where nodes add
shares of the noise (:mod:`.distributed`), this takes its place: clip, noise and
integers are one step, so that nothing without noise is ever encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ProtocolError
from truststram.job import Job

from .clip import clip
from .csprng import Source
from .distributed import DistributedPlan, distributed_plan
from .skellam import draw_skellam

__all__ = ["SkellamEncoder", "encoder_for"]


@dataclass(frozen=True)
class SkellamEncoder:
    """From an update to the integers that a secure sum adds, and back.

    In the place of a secure sum's own quantiser, which knows nothing of privacy.

    Parameters
    ----------
    plan : DistributedPlan
    insecure : bool
        Noise repeats with ``rng``, which gives no privacy: tests only.

    Guarantees
    ----------
    Sums of what at least ``plan.honest`` honest clients and any others encode are
    (epsilon, delta)-differentially private as ``plan.release`` says, for replacing all
    that one honest client holds, towards whoever sees the sum and nothing else of what
    is encoded. What ``encode`` returns is hardly protected by itself: it must leave the
    node inside a secure sum only, and nothing else that was computed from it or from
    the update may (no checksum, no count of clipped values). Every call is a release:
    encode once and keep the result, also where a message is repeated.
    """

    plan: DistributedPlan
    insecure: bool = False

    # Nothing but the sum may be told of what is encoded; see above.
    noised: ClassVar[bool] = True

    @property
    def most(self) -> int:
        """Largest number of clients in a sum."""
        return self.plan.most

    @property
    def bits(self) -> int:
        """Bits of one client's integer."""
        return (2 * self.half).bit_length()

    @property
    def width(self) -> int:
        """Bits of a sum of ``most`` clients."""
        return (2 * self.half * self.most).bit_length()

    @property
    def half(self) -> int:
        """The integer of zero; the largest is twice this."""
        return self.plan.half

    @property
    def step(self) -> float:
        """Distance of two neighbouring integers, in the unit of the update."""
        return self.plan.on.step

    def encode(
        self, x: NDArray[np.floating], rng: np.random.Generator
    ) -> NDArray[np.uint32]:
        """Return the clipped, noised update as integers in ``[0, 2 half]``, shape (d,).

        Parameters
        ----------
        x : array of shape (d,)
            The whole update; NaN or Inf anywhere makes it count as a zero update.
        rng : numpy Generator
            For insecure noise only; otherwise it comes from the operating system.

        Raises
        ------
        ValueError
            For another length than the noise was planned for.
        """
        if len(x) != self.plan.release.dimension:
            raise ValueError(
                f"an update of {len(x)} values; the noise was planned for "
                f"{self.plan.release.dimension}"
            )
        source = Source()
        if self.insecure:
            source = Source.insecure(int(rng.integers(2**62)))
        update = np.ascontiguousarray(x, np.float32)
        integers = clip(update, self.plan.on).integers
        integers += draw_skellam(self.plan.share, len(x), source)
        integers += self.half
        # What does not fit is as rare as OVERFLOW says, and accounted for.
        np.clip(integers, 0, 2 * self.half, out=integers)
        return integers.astype(np.uint32)

    def clipped(self, x: object) -> int:
        """Return 0: how many values were clipped is not told."""
        return 0

    def check_sum(self, total: NDArray[np.integer], count: int) -> None:
        """Refuse what cannot be a sum of ``count`` clients.

        Raises
        ------
        ProtocolError
            ``sum-range``.
        """
        if not 1 <= count <= self.most:
            raise ProtocolError("sum-range", f"{count} clients, at most {self.most}")
        if len(total) and (total.min() < 0 or total.max() > count * 2 * self.half):
            raise ProtocolError("sum-range", f"not a sum of values of {count} clients")

    def decode_sum(self, total: NDArray[np.integer], count: int) -> NDArray[np.float64]:
        """Return the noisy sum of the updates of ``count`` clients, shape (d,).

        Raises
        ------
        ProtocolError
            As :meth:`check_sum`.
        """
        self.check_sum(total, count)
        centred = total.astype(np.int64, copy=False) - count * self.half
        values: NDArray[np.float64] = np.multiply(centred, self.step, dtype=np.float64)
        return values


def encoder_for(job: Job, dimension: int) -> SkellamEncoder:
    """Return what a job's secure sum encodes updates of ``dimension`` values with.

    Raises
    ------
    ConfigError
        As :func:`distributed_plan`.
    """
    plan = distributed_plan(job, dimension)
    return SkellamEncoder(plan, job.privacy.insecure)
