"""The techniques, for any Flower app: ``from truststram.techniques import Guard``.

Strategies wrap a Flower strategy, mods go into a ``ClientApp`` or one of its functions:

    strategy = Guard(WeightedMean(FedAdam()))
    app = ClientApp(mods=[delta_mod])

The names come from the ``strategies`` folder of this copy of truststram, wherever it is
installed and whatever else is called ``strategies`` (:mod:`truststram._locate`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._locate import app_module

if TYPE_CHECKING:
    from strategies import stack as stack
    from strategies.adversary.layer import Adversary as Adversary
    from strategies.adversary.mod import backdoor_test as backdoor_test
    from strategies.adversary.mod import poisoned as poisoned
    from strategies.adversary.who import (
        refuse_outside_simulation as refuse_outside_simulation,
    )
    from strategies.anomaly.layer import Anomaly as Anomaly
    from strategies.base import StrategyLayer as StrategyLayer
    from strategies.guard.layer import Guard as Guard
    from strategies.mean.layer import WeightedMean as WeightedMean
    from strategies.robust.layer import Robust as Robust
    from strategies.robust.layer import WFAgg as WFAgg
    from strategies.server_sgd import ServerSGD as ServerSGD
    from strategies.tail_average import TailAverage as TailAverage
    from strategies.update import delta_mod as delta_mod

_HOMES = {
    "Adversary": "adversary.layer",
    "Anomaly": "anomaly.layer",
    "Guard": "guard.layer",
    "Robust": "robust.layer",
    "ServerSGD": "server_sgd",
    "StrategyLayer": "base",
    "TailAverage": "tail_average",
    "WFAgg": "robust.layer",
    "WeightedMean": "mean.layer",
    "backdoor_test": "adversary.mod",
    "delta_mod": "update",
    "poisoned": "adversary.mod",
    "refuse_outside_simulation": "adversary.who",
}

__all__ = [
    "Adversary",
    "Anomaly",
    "Guard",
    "Robust",
    "ServerSGD",
    "StrategyLayer",
    "TailAverage",
    "WFAgg",
    "WeightedMean",
    "backdoor_test",
    "delta_mod",
    "poisoned",
    "refuse_outside_simulation",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(app_module(f"strategies.{_HOMES[name]}"), name)
    if name == "stack":
        return app_module("strategies.stack")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
