"""Who was in the training data? Two attacks on the model of a finished run.

* Loss threshold (Yeom et al., "Privacy Risk in Machine Learning", CSF 2018): members
  have smaller losses.
* A small LiRA (Carlini et al., "Membership Inference Attacks From First Principles",
  S&P 2022, online, fixed variance): shadow models are trained on random halves of the
  examples; the score is the likelihood ratio of the example's confidence, with against
  without it. Differences: a few shadow models instead of hundreds, trained in one
  place instead of by the federation, on the examples under attack only.

Members are the nodes' training data, non-members the server's test data. Both attacks
need data that an outsider does not have: they are run by whoever owns a simulation or
the test bed of a federation.

An AUC near 0.5 means that these attacks found nothing; it is no guarantee.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from ..engine import one_torch_thread
from ..errors import ConfigError
from ..job import Job
from ..rng import derive, derive_seed
from ..task import Node, Task

if TYPE_CHECKING:
    import torch

    from ..tasks.torch_task import Examples

__all__ = ["Attack", "Pool", "attacks", "judged", "pool_of"]

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Of either kind under attack, shadow models, and passes over the data of each.
MOST, SHADOWS, PASSES = 1000, 8, 40
FALSE_POSITIVES = 0.01


@dataclass(frozen=True)
class Attack:
    """How well an attack tells members from non-members.

    Attributes
    ----------
    name : str
    auc : float
        Probability that a member scores above a non-member; 0.5 is chance.
    spread : float
        Standard error of the AUC if the scores meant nothing.
    tpr : float
        Members found while 1 % of non-members are accused.
    members, others : int
    """

    name: str
    auc: float
    spread: float
    tpr: float
    members: int
    others: int

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.auc - 0.5 > 3 * self.spread:
            return "members can be told from others"
        return "no better than chance, as far as this attack can see"


@dataclass(frozen=True)
class Pool:
    """The examples under attack.

    Attributes
    ----------
    data : Examples
    member : array of bool, shape (rows,)
    """

    data: Examples
    member: Bools


def pool_of(task: Task, job: Job, nodes: int) -> Pool:
    """Return members and non-members, as many of each.

    Raises
    ------
    ConfigError
        For a task that is no classification with data on the server.
    """
    import torch

    from ..tasks.torch_task import Examples

    test: Any = task.test_data(job, None)
    if not isinstance(test, Examples):
        raise ConfigError(
            f"Membership inference needs non-members: the task {job.task.name} has no "
            "test data on the server, or they are no Examples."
        )
    shares = [
        task.train_data(job, Node(str(i), i, nodes, job.data.path or None))
        for i in range(nodes)
    ]
    parts: list[Examples] = []
    x, y = torch.cat([s.x for s in shares]), torch.cat([s.y for s in shares])
    size = min(MOST, len(y), len(test))
    for name, data in (("members", Examples(x, y)), ("others", test)):
        rows = derive(job.run.seed, "attack", name).permutation(len(data))[:size]
        parts.append(data.take(np.sort(rows)))
    both = Examples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))
    return Pool(both, np.repeat([True, False], size))


def attacks(
    model: torch.nn.Module,
    task: Task,
    job: Job,
    pool: Pool,
    *,
    shadows: int = SHADOWS,
    passes: int = PASSES,
) -> list[Attack]:
    """Attack a model.

    Parameters
    ----------
    model : Module
        The finished one.
    task, job
        How shadow models are trained: the job's settings, without its privacy.
    pool : Pool
    shadows : int
        Shadow models, at least 2; 0 leaves LiRA out.
    passes : int
        Passes of their training, at most; the run's own number if that is less.
    """
    with one_torch_thread():
        scores = {"loss threshold": -_losses(model, pool.data)}
        if shadows:
            name = f"LiRA with {shadows} shadow models"
            scores[name] = _lira(model, task, job, pool, shadows, passes)
    return [judged(name, score, pool.member) for name, score in scores.items()]


def judged(name: str, score: Doubles, member: Bools) -> Attack:
    """Return how well a score, high for members, separates them."""
    ones, zeros = int(member.sum()), int((~member).sum())
    ranks = rankdata(score)
    auc = (ranks[member].sum() - ones * (ones + 1) / 2) / (ones * zeros)
    limit = np.sort(score[~member])[::-1][math.floor(FALSE_POSITIVES * zeros)]
    return Attack(
        name=name,
        auc=float(auc),
        spread=math.sqrt((ones + zeros + 1) / (12 * ones * zeros)),
        tpr=float((score[member] > limit).mean()),
        members=ones,
        others=zeros,
    )


def _lira(
    model: torch.nn.Module, task: Task, job: Job, pool: Pool, shadows: int, passes: int
) -> Doubles:
    """Return the log likelihood ratios of all examples."""
    rows = len(pool.data)
    epochs = min(passes, job.train.rounds * job.train.local_epochs)
    keys = {k: v for k, v in Job().config().items() if k.startswith("privacy.")}
    shadow_job = job.replace({**keys, "train.local-epochs": epochs})
    inside = _halves(job, rows, shadows)
    confidence = np.empty((shadows, rows))
    for i, chosen in enumerate(inside):
        seed = derive_seed(job.run.seed, "shadow", i)
        shadow = task.model(shadow_job, seed)
        task.train(shadow, pool.data.take(np.flatnonzero(chosen)), shadow_job, seed)
        confidence[i] = _confidence(shadow, pool.data)
    return _ratio(_confidence(model, pool.data), confidence, inside)


def _halves(job: Job, rows: int, shadows: int) -> Bools:
    """Return which examples each shadow model sees; each example is seen by half."""
    rng = derive(job.run.seed, "halves")
    order = rng.random((shadows, rows)).argsort(axis=0)
    return order < (shadows + 1) // 2


def _ratio(target: Doubles, shadow: Doubles, inside: Bools) -> Doubles:
    """Return how much likelier the target's confidence is with the example inside."""
    means = [np.nanmean(np.where(x, shadow, np.nan), axis=0) for x in (inside, ~inside)]
    residual = shadow - np.where(inside, *means)
    # One variance for all: a few shadow models do not tell that of each example.
    spreads = [float(residual[x].std()) + 1e-6 for x in (inside, ~inside)]
    ratio: Doubles = norm.logpdf(target, means[0], spreads[0]) - norm.logpdf(
        target, means[1], spreads[1]
    )
    return ratio


def _losses(model: torch.nn.Module, data: Examples) -> Doubles:
    """Return the cross-entropy of every example."""
    import torch

    model.eval()
    with torch.no_grad():
        scores = model(data.x)
        found = torch.nn.functional.cross_entropy(scores, data.y, reduction="none")
    losses: Doubles = found.double().numpy()
    return losses


def _confidence(model: torch.nn.Module, data: Examples) -> Doubles:
    """Return log(p / (1 - p)) of the right class: about normal (Carlini, fig. 4)."""
    losses = np.clip(_losses(model, data), 1e-7, 50.0)
    found: Doubles = -losses - np.log(-np.expm1(-losses))
    return found


def listed(found: Sequence[Attack]) -> list[str]:
    """Return one line for each attack."""
    return [
        f"{a.name}: AUC {a.auc:.3f} (chance 0.5 +- {a.spread:.3f}), {a.tpr:.1%} of "
        f"members found at 1 % false accusations: {a.verdict}."
        for a in found
    ]
