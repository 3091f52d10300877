"""Mime-lite over Flower: an update and a gradient, sent as one vector.

Karimireddy et al., "Breaking the Centralized Barrier for Cross-Device Federated
Learning", NeurIPS 2021 (MimeLite): the server's optimizer state is applied in each
local step and kept fixed meanwhile; what moves it is the mean of the silos' gradients
at the server's model. So a silo sends two vectors of the model's length, each weighted.

Mathematics
-----------
In silo k, ``work`` gives ``w_k g_k`` and ``w_k`` as in :mod:`.leaves`, and ``w_k h_k``
with the gradient ``h_k``, and ``w_k`` once more: in TFF both means have the same
weights, the examples that training saw or 1. The silo sends the vector ``-(g_k, h_k)``,
(2 d,), so that the server restores all four sums from one weighted mean. The second
weight is no part of a reply: a silo could move everybody's momentum with it alone, as
far as it likes. A silo whose plan makes another one does not answer.

How the layers see it: :class:`TwoVectors` stands outside all of them and shows them a
model with zeros for a second vector beside its own arrays, so that what they check and
add up has 2 d values; :class:`TwoVectorServer` stands inside and sends the silos the
model alone. The global model that is evaluated and recorded never has the zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram.job import Job
from truststram.records import pack
from truststram.sections import ServerKeys
from truststram.techniques import Model, StrategyLayer

from .strategy import TFFServer

__all__ = ["TwoVectorServer", "TwoVectors", "conflicts"]

BESIDE = "tff-gradient/"


class TwoVectors(StrategyLayer):
    """Show the layers inside a model with a second vector; the outermost layer.

    Parameters
    ----------
    inner : Strategy
        Layers around a :class:`TwoVectorServer`.
    shapes : mapping
        Of the model's arrays, by name.
    """

    def __init__(self, inner: Strategy, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(inner)
        self._beside = {
            f"{BESIDE}{name}": pack(np.zeros(shape, np.float32))
            for name, shape in shapes.items()
        }

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the layers inside expect updates of both vectors."""
        both = ArrayRecord({**arrays, **self._beside})
        return super().configure_train(server_round, both, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the replies on; return the model alone."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        return None if arrays is None else alone(arrays), metrics

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        return "TwoVectors: updates and gradients"


class TwoVectorServer(TFFServer):
    """Take TFF's server step with the means of updates and of gradients.

    Inside :class:`TwoVectors` only. Parameters and guarantees as for
    :class:`.strategy.TFFServer`.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the model's arrays, by name."""
        return self._training.plan.parameters

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model, and the optimizer's state that ``prepare`` makes."""
        messages = super().configure_train(server_round, alone(arrays), config, grid)
        self._model = Model(ArrayRecord(dict(arrays)))  # what a reply is long as
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step with the single reply; the second vector beside the model stays zero."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None and self._model is not None:
            arrays = ArrayRecord({**self._model.arrays, **arrays})
        return arrays, metrics


def alone(arrays: ArrayRecord) -> ArrayRecord:
    """Return the model without what stands beside it."""
    return ArrayRecord({n: a for n, a in arrays.items() if not n.startswith(BESIDE)})


# (whether it applies, what and why, what to do instead)
_CONFLICTS: tuple[tuple[Callable[[Job], bool], str], ...] = (
    (
        lambda job: job.robust.rule != "mean" or job.anomaly.enabled == "on",
        "robust.rule or anomaly.enabled: mime-lite's silos send an update and a "
        "gradient, and in one distance of both the longer one hides the other",
    ),
    (
        lambda job: job.privacy.on,
        "privacy.mechanism: mime-lite's silos send a gradient beside the update, and "
        "noise is planned for the update alone",
    ),
    (
        lambda job: job.compression.on,
        "compression: mime-lite's silos send a gradient beside the update, and codecs "
        "choose among the model's values",
    ),
    (
        lambda job: job.secure.on,
        "secure.scheme: mime-lite's silos send a gradient beside the update, which has "
        "another scale than the one secure.clip is for",
    ),
    (
        lambda job: job.tff.mixed,
        "tff.mixed: torch silos send no gradients beside their updates",
    ),
    (
        lambda job: job.server.average not in (0.0, ServerKeys().average),
        "server.average: the average would be of two vectors",
    ),
)


def conflicts(job: Job) -> list[str]:
    """Return a line for each setting that a plan with two vectors cannot have."""
    instead = ". Compile fed-avg with server.momentum, or remove it"
    return [line + instead for applies, line in _CONFLICTS if applies(job)]
