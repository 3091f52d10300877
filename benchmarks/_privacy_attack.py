"""Membership inference: whoever was trained on has a smaller loss.

Yeom, Giacomelli, Fredrikson and Jha, "Privacy Risk in Machine Learning: Analyzing the
Connection to Overfitting", CSF 2018, section 3.3; the threshold is left free, and the
area under the curve reported.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from benchmarks._privacy_data import Clients, Images
from benchmarks._privacy_training import Network
from truststram.records import Float32

__all__ = ["area", "attack"]

Values = NDArray[np.floating]


def attack(
    network: Network,
    flat: Float32,
    images: Images,
    clients: Clients,
    outsiders: Clients,
) -> tuple[float, float]:
    """Return how well a model's losses tell who was trained on: two areas.

    Of single examples, those that any client holds against the others' images; and of
    whole clients, by their mean loss, against outsiders who were dealt these.
    """
    inside = _losses(network, flat, images.x, images.y)
    outside = _losses(network, flat, images.other_x, images.other_y)
    return (
        area(inside[clients.held], outside),
        area(_means(inside, clients), _means(outside, outsiders)),
    )


def area(members: Values, others: Values) -> float:
    """Return the probability that a member's loss is below another's; 0.5: no idea."""
    ranks = rankdata(np.concatenate([members, others]))
    n, k = len(members), len(others)
    above = float(ranks[:n].sum()) - n * (n + 1) / 2
    return 1 - above / (n * k)


def _losses(network: Network, flat: Float32, x: Tensor, y: Tensor) -> Values:
    scores = network.scores(flat, x)
    losses: Values = torch.nn.functional.cross_entropy(
        scores, y, reduction="none"
    ).numpy()
    return losses


def _means(losses: Values, clients: Clients) -> Values:
    """Return the mean loss of each client."""
    counts = np.arange(clients.rows.shape[1]) < clients.sizes[:, None]
    means: Values = (losses[clients.rows] * counts).sum(1) / clients.sizes
    return means
