"""Training in which no single example can be found again: DP-SGD on a node.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, Algorithm 1.
Differences: noise from a cryptographic generator on an integer lattice; exact
accounting (privacy loss distributions); the noise covers all rounds of a run.

Mathematics (n examples, batch size B, C = privacy.clip, z from the accounting)
-------------------------------------------------------------------------------
In each step every example is drawn with probability ``q = min(1, B / n)``,
independently, and ``g = (sum_i g_i min(1, C / |g_i|) + z C N) / (q n)`` goes to SGD.
The divisor is the expected size of a batch, never the drawn one; an empty batch is a
step of noise alone. A run has ``train.rounds * train.local-epochs * ceil(n / B)``
steps.

Guarantee
---------
Everything that a node sends in a run, to everybody including the server, is
(epsilon, delta)-differentially private for one example added or removed, if the node
answers each round at most once. The number n, which sets rate, steps and noise, counts
as known, as everywhere in DP-SGD: "removed" means counted, but without gradient. It is
not sent, but the noise in an update lets it be estimated.

What the noise is made of
-------------------------
Opacus draws float noise from torch's Mersenne twister, which can be recovered from its
outputs; sums with float noise leak in their last bits; its ``secure_mode`` needs
torchcsprng, which does not exist for this torch. Here batches and noise come from
AES-256-CTR under a key from the operating system; the sum of the clipped gradients is
rounded to integers, and nothing is used of it but integers plus integer noise: see
``strategies/mechanisms/lattice.py``.

Rounding moves the sums of neighbours apart, and gradients and their norms are computed
in float32. Clipping to C (1 - 2**-9) makes room for both: proved for the first, ample
for the usual errors of the second (1e-6), but those are not verified, as the clip of a
whole update is, in exact integers for each example. Dropout draws from torch's
generator under a seed from the same source: who knew the masks could tell examples
apart by them.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._locate import app_module
from ..errors import ConfigError, DataError
from ..job import Job
from .dp_plan import MARGIN, planned_release, steps_per_round, sum_lattice
from .example_gradients import Gradients, trained
from .private_models import example_gradients
from .torch_task import Examples, TorchTask, _device, _draws, _seeded

if TYPE_CHECKING:
    from strategies.mechanisms.csprng import Source

__all__ = ["check_task", "clip_factors", "train_private"]

# Examples computed together, and values of gradients formed for them: more than fit
# into a cache make it slower.
_ROWS, _VALUES = 128, 2**21


def check_task(task: object) -> None:
    """Refuse a task that would train without example-level privacy.

    Raises
    ------
    ConfigError
        For a task that is no :class:`~.torch_task.TorchTask`, or has its own ``train``.
    """
    if not (isinstance(task, TorchTask) and type(task).train is TorchTask.train):
        raise ConfigError(
            f"privacy.unit = example: the task {type(task).__name__} trains in its own "
            "way, without DP-SGD. Use TorchTask.train, or privacy.unit = client."
        )


def train_private(
    model: nn.Module, data: Examples, job: Job, seed: int, source: Source | None = None
) -> Mapping[str, float]:
    """Train ``model`` in place with DP-SGD; see the module for the guarantee.

    Parameters
    ----------
    seed : int
        Used only if ``privacy.insecure``, which gives no privacy.
    source : Source, optional
        Of batches, noise and dropout; by default a new one with a key from the
        operating system.

    Returns
    -------
    dict
        Empty: the training loss would be one more release.

    Raises
    ------
    DataError
        If there are no examples.
    ConfigError
        For a model without gradients of single examples, with the layer's name and
        what to use instead; for a budget or a clip that cannot be honoured; if the
        weights are not finite any more.
    """
    if len(data) == 0:
        raise DataError("There are no training examples on this node.")
    if importlib.util.find_spec("opacus") is None:
        raise ConfigError("dp-sgd needs Opacus: pip install 'truststram-fl[privacy]'.")
    if source is None:
        kind = app_module("strategies.mechanisms.csprng").Source
        source = kind.insecure(seed) if job.privacy.insecure else kind()
    model.train()
    masks = int(source.words(1)[0]) >> 1
    with _seeded(masks) if _draws(model) else nullcontext():
        _Run(model, data, job, source).run()
    if not all(p.isfinite().all() for p in trained(model)):
        raise ConfigError(
            f"train.lr = {job.train.lr:g}: local training diverged; use a smaller "
            "train.lr or train.momentum."
        )
    return {}


class _Run:
    """One node's training in one round."""

    def __init__(
        self, model: nn.Module, data: Examples, job: Job, source: Source
    ) -> None:
        self._model, self._job, self._source = model, job, source
        device = _device(model)
        self._x, self._y = data.x.to(device), data.y.to(device)
        self._parameters = trained(model)
        self._sizes = [p.numel() for p in self._parameters]
        d = sum(self._sizes)
        self._release = planned_release(job, len(data), d)
        self._expected = min(job.train.batch_size, len(data))
        self._on = sum_lattice(job.privacy.clip, d)
        self._draw = app_module("strategies.mechanisms.noise").draw
        self._decode = app_module("strategies.mechanisms.lattice").from_lattice
        self._rows = 1  # until it is known what an example takes

    def run(self) -> None:
        """Make all steps."""
        settings = self._job.train
        optimizer = torch.optim.SGD(
            self._parameters, lr=settings.lr, momentum=settings.momentum
        )
        with example_gradients(self._model, _loss, self._x) as gradients:
            for _ in range(steps_per_round(self._job, len(self._y))):
                self._release_into_grad(self._clipped_sum(gradients, self._drawn()))
                optimizer.step()
        optimizer.zero_grad()

    def _drawn(self) -> torch.Tensor:
        """Return the rows of a batch, each drawn with the same probability."""
        n = len(self._y)
        rate = self._release.sampling.rate
        drawn = torch.from_numpy(self._source.uniforms(n) <= rate)
        return drawn.nonzero().flatten().to(self._y.device)

    def _clipped_sum(self, gradients: Any, batch: torch.Tensor) -> torch.Tensor:
        """Return the sum of the batch's clipped gradients, shape (d,)."""
        device = self._y.device
        total = torch.zeros(sum(self._sizes), device=device)
        clip = self._job.privacy.clip * (1 - MARGIN)
        while len(batch):
            parts = math.ceil(len(batch) / self._rows)
            rows, batch = batch.tensor_split([math.ceil(len(batch) / parts)])
            found: Gradients = gradients(self._x[rows], self._y[rows])
            total += found.total(clip_factors(found, clip), self._parameters)
            values = max(1, found.formed_values())
            self._rows = max(1, min(_ROWS, _VALUES // values))
        return total

    def _release_into_grad(self, total: torch.Tensor) -> None:
        """Add noise to a sum and put it, divided, where the optimizer looks."""
        steps = (total.double() / self._on.step).round_().long().cpu().numpy()
        steps += self._draw(self._release, self._on.units, len(steps), self._source)
        mean = torch.from_numpy(self._decode(steps, self._on, self._expected))
        parts = torch.split(mean.to(total.device), self._sizes)
        for p, part in zip(self._parameters, parts, strict=True):
            p.grad = part.view_as(p).to(p.dtype)


def clip_factors(gradients: Gradients, clip: float) -> torch.Tensor:
    """Return what shortens each example's gradient to ``clip``, shape (B,).

    Gradients that are not finite are set to zero: they must not reach the sum.
    """
    norms = gradients.norms()
    finite = norms.isfinite()
    if not finite.all():
        gradients.forget(~finite)
    return (clip / norms.clamp(min=clip)).where(finite, 0)


def _loss(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(scores, y, reduction="sum")
