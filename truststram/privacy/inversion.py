"""What one update gives away: an input, from the first linear layer, exactly.

The gradient of a linear layer with bias is ``dW = g x^T`` and ``db = g`` for a single
example x, so ``x = dW_i / db_i`` for every row i (Phong et al., "Privacy-Preserving
Deep Learning via Additively Homomorphic Encryption", IEEE TIFS 13(5), 2018). All rows
together, by least squares: ``x = sum_i db_i dW_i / sum_i db_i^2``.

A demonstration, not a measurement of risk: the update is that of one SGD step on one
example, the best case of the attacker. It shows what clipping and noise do to it; it
does not show that larger batches or other layers are safe, for which better attacks
exist.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._locate import app_module
from ..errors import ConfigError
from ..job import Job
from ..rng import derive_seed
from ..task import Task
from ..techniques import Plan

if TYPE_CHECKING:
    import torch

    from ..tasks.torch_task import Examples

__all__ = ["MOST_PSNR", "Inversion", "invert", "inverted", "psnr"]

Doubles = NDArray[np.float64]

# Shown instead of infinity.
MOST_PSNR = 200.0


@dataclass(frozen=True)
class Inversion:
    """Inputs that were read from updates.

    Attributes
    ----------
    layer : str
        What was read, and of which model.
    examples : int
    plain, protected, guess : float
        Mean PSNR in dB: from the bare update; after clipping and noise; of the best
        constant guess, which needs no update at all.
    noise : str
        Which protection; empty for a job without privacy.
    """

    layer: str
    examples: int
    plain: float
    protected: float | None
    guess: float
    noise: str

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.protected is None:
            return "nothing protects a single update"
        if self.protected < self.guess + 3:
            return "the protected update tells no more than a constant guess"
        return "the protected update still gives the input away"


def invert(
    task: Task, job: Job, data: Examples, *, nodes: int = 1, examples: int = 8
) -> Inversion:
    """Read single training examples from their updates.

    Parameters
    ----------
    task : Task
    job : Job
        Its privacy settings are the protection.
    data : Examples
        Of one node.
    nodes : int
        Registered nodes; does not change the noise on a sum.
    examples : int
        How many to try.

    Raises
    ------
    ConfigError
        For inputs that are no numbers, or noise by another mechanism.
    """
    rows = np.arange(min(examples, len(data)))
    plain, protected, guess = [], [], []
    for row in rows:
        one = data.take(rows[row : row + 1])
        model, layer = _attacked(task, job, one)
        delta = _update(model, one)
        x = one.x.double().numpy().ravel()
        plain.append(psnr(x, inverted(delta, layer)))
        guess.append(psnr(x, np.full_like(x, x.mean())))
        if job.privacy.on:
            noisy = _protected(job, delta, nodes, len(data), int(row))
            protected.append(psnr(x, np.clip(inverted(noisy, layer), x.min(), x.max())))
    return Inversion(
        layer=_name(task, job),
        examples=len(rows),
        plain=float(np.mean(plain)),
        protected=float(np.mean(protected)) if protected else None,
        guess=float(np.mean(guess)),
        noise=_protection(job),
    )


def inverted(delta: Doubles, shape: tuple[int, int]) -> Doubles:
    """Return the input that an update was made of.

    Parameters
    ----------
    delta : array, shape (d,)
        Begins with the weights of the layer, then its biases.
    shape : (outputs, inputs)
    """
    outputs, inputs = shape
    weights = delta[: outputs * inputs].reshape(shape)
    biases = delta[outputs * inputs : outputs * inputs + outputs]
    found: Doubles = biases @ weights / max(float(biases @ biases), 1e-300)
    return found


def psnr(x: Doubles, found: Doubles) -> float:
    """Return the peak signal-to-noise ratio in dB, at most :data:`MOST_PSNR`."""
    reach = float(x.max() - x.min()) or 1.0
    error = float(np.mean((x - found) ** 2))
    if error <= reach**2 * 10 ** (-MOST_PSNR / 10):
        return MOST_PSNR
    return 10 * math.log10(reach**2 / error)


def _name(task: Task, job: Job) -> str:
    if _first_linear(task.model(job, seed=0)) is None:
        return "a linear model of the same inputs, since this one begins otherwise"
    return "the model's first layer"


def _first_linear(model: torch.nn.Module) -> Any:
    """Return the first layer with weights, if it is linear with a bias."""
    from torch import nn

    weighted = (m for m in model.modules() if list(m.parameters(recurse=False)))
    first = next(weighted, None)
    fits = isinstance(first, nn.Linear) and first.bias is not None
    return first if fits else None


def _attacked(
    task: Task, job: Job, one: Examples
) -> tuple[torch.nn.Module, tuple[int, int]]:
    """Return the model under attack, and the shape of its first layer."""
    from torch import nn

    from ..tasks.torch_task import seeded_model

    model = task.model(job, seed=derive_seed(job.run.seed, "model"))
    if (first := _first_linear(model)) is None:
        classes = model(one.x).shape[1]
        inputs = one.x[0].numel()
        first = nn.Linear(inputs, classes)
        model = seeded_model(lambda: nn.Sequential(nn.Flatten(), first), 1)
    if not one.x.is_floating_point() or one.x[0].numel() != first.in_features:
        raise ConfigError("Gradient inversion needs inputs of numbers, one a weight.")
    return model, (first.out_features, first.in_features)


def _update(model: torch.nn.Module, one: Examples) -> Doubles:
    """Return the update of one SGD step of rate 1, shape (d,)."""
    import torch

    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(one.x), one.y)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    found: Doubles = -torch.cat(parts).double().numpy()
    return found


def _protected(job: Job, delta: Doubles, nodes: int, n: int, row: int) -> Doubles:
    """Return the update clipped and noised, as whoever sees it gets it.

    With central noise that is who sees the released sum and knows all other updates.
    """
    mechanisms = "strategies.mechanisms"
    noise = app_module(f"{mechanisms}.noise")
    clip = app_module(f"{mechanisms}.clip").clip
    source = app_module(f"{mechanisms}.csprng").Source
    seed = derive_seed(job.run.seed, "inversion", row)
    random = source.insecure(seed) if job.privacy.insecure else source()
    release, bound = _release(job, nodes, n, len(delta))
    on = noise.lattice_for(release, bound, len(delta))
    integers = clip(delta.astype(np.float32), on).integers
    integers += noise.draw(release, on.units, len(delta), random)
    found: Doubles = integers * on.step
    return found


def _release(job: Job, nodes: int, n: int, d: int) -> tuple[Any, float]:
    """Return what a round (a step, for examples) releases, and its clip."""
    if job.privacy.unit == "example":
        from ..tasks.dp_plan import planned_release

        return planned_release(job, n, d), job.privacy.clip
    plan = Plan.of(job, nodes, d)
    return plan.release, plan.lattice_clip


def _protection(job: Job) -> str:
    keys = job.privacy
    if not keys.on:
        return ""
    if keys.unit == "example":
        return "clip and noise of one DP-SGD step"
    if keys.central:
        return "clip and noise of a round, against all but the server"
    return "clip and noise of the node, also against the server"
