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
    from strategies.accounting.calibrate import calibrate as calibrate
    from strategies.accounting.events import Release as Release
    from strategies.accounting.events import Sampling as Sampling
    from strategies.accounting.flower import LedgerAccountant as LedgerAccountant
    from strategies.accounting.ledger import Ledger as Ledger
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
    from strategies.mechanisms.layer import CentralDP as CentralDP
    from strategies.mechanisms.mod import private_mod as private_mod
    from strategies.mechanisms.plan import Plan as Plan
    from strategies.robust.layer import Robust as Robust
    from strategies.robust.layer import WFAgg as WFAgg
    from strategies.server_sgd import ServerSGD as ServerSGD
    from strategies.tail_average import TailAverage as TailAverage
    from strategies.update import Model as Model
    from strategies.update import delta_mod as delta_mod
    from strategies.update import read_delta as read_delta
    from strategies.update import with_delta as with_delta

_HOMES = {
    "Adversary": "adversary.layer",
    "Anomaly": "anomaly.layer",
    "CentralDP": "mechanisms.layer",
    "Guard": "guard.layer",
    "Ledger": "accounting.ledger",
    "LedgerAccountant": "accounting.flower",
    "Model": "update",
    "Plan": "mechanisms.plan",
    "Release": "accounting.events",
    "Robust": "robust.layer",
    "Sampling": "accounting.sampling",
    "ServerSGD": "server_sgd",
    "StrategyLayer": "base",
    "TailAverage": "tail_average",
    "WFAgg": "robust.layer",
    "WeightedMean": "mean.layer",
    "backdoor_test": "adversary.mod",
    "calibrate": "accounting.calibrate",
    "delta_mod": "update",
    "poisoned": "adversary.mod",
    "private_mod": "mechanisms.mod",
    "read_delta": "update",
    "refuse_outside_simulation": "adversary.who",
    "with_delta": "update",
}

__all__ = [
    "Adversary",
    "Anomaly",
    "CentralDP",
    "Guard",
    "Ledger",
    "LedgerAccountant",
    "Model",
    "Plan",
    "Release",
    "Robust",
    "Sampling",
    "ServerSGD",
    "StrategyLayer",
    "TailAverage",
    "WFAgg",
    "WeightedMean",
    "backdoor_test",
    "calibrate",
    "delta_mod",
    "poisoned",
    "private_mod",
    "read_delta",
    "refuse_outside_simulation",
    "with_delta",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(app_module(f"strategies.{_HOMES[name]}"), name)
    if name == "stack":
        return app_module("strategies.stack")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
