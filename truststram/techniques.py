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
    from strategies.base import sole_reply as sole_reply
    from strategies.compression.layer import Compression as Compression
    from strategies.compression.mod import compression_mod as compression_mod
    from strategies.guard.layer import Guard as Guard
    from strategies.mean.layer import WeightedMean as WeightedMean
    from strategies.mechanisms.distributed_layer import DistributedDP as DistributedDP
    from strategies.mechanisms.encoder import encoder_for as encoder_for
    from strategies.mechanisms.layer import CentralDP as CentralDP
    from strategies.mechanisms.mod import private_mod as private_mod
    from strategies.mechanisms.plan import Plan as Plan
    from strategies.robust.layer import Robust as Robust
    from strategies.robust.layer import WFAgg as WFAgg
    from strategies.secure.identity import Identity as Identity
    from strategies.secure.identity import Roster as Roster
    from strategies.secure.integers import read_sums as read_sums
    from strategies.secure.integers import with_integers as with_integers
    from strategies.secure.keys import JobKey as JobKey
    from strategies.secure.keys import parameters_of as parameters_of
    from strategies.secure.layer import SecureSum as SecureSum
    from strategies.secure.mod import secure_mod as secure_mod
    from strategies.secure.secagg_layer import SecAggSum as SecAggSum
    from strategies.secure.secagg_mod import secagg_mod as secagg_mod
    from strategies.secure.whole import WholeNumbers as WholeNumbers
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
    "Compression": "compression.layer",
    "DistributedDP": "mechanisms.distributed_layer",
    "Guard": "guard.layer",
    "Identity": "secure.identity",
    "JobKey": "secure.keys",
    "Ledger": "accounting.ledger",
    "LedgerAccountant": "accounting.flower",
    "Model": "update",
    "Plan": "mechanisms.plan",
    "Release": "accounting.events",
    "Robust": "robust.layer",
    "Roster": "secure.identity",
    "Sampling": "accounting.sampling",
    "SecAggSum": "secure.secagg_layer",
    "SecureSum": "secure.layer",
    "ServerSGD": "server_sgd",
    "StrategyLayer": "base",
    "TailAverage": "tail_average",
    "WFAgg": "robust.layer",
    "WeightedMean": "mean.layer",
    "WholeNumbers": "secure.whole",
    "backdoor_test": "adversary.mod",
    "calibrate": "accounting.calibrate",
    "compression_mod": "compression.mod",
    "delta_mod": "update",
    "encoder_for": "mechanisms.encoder",
    "parameters_of": "secure.keys",
    "poisoned": "adversary.mod",
    "private_mod": "mechanisms.mod",
    "read_delta": "update",
    "read_sums": "secure.integers",
    "refuse_outside_simulation": "adversary.who",
    "secagg_mod": "secure.secagg_mod",
    "secure_mod": "secure.mod",
    "sole_reply": "base",
    "with_delta": "update",
    "with_integers": "secure.integers",
}

__all__ = [
    "Adversary",
    "Anomaly",
    "CentralDP",
    "Compression",
    "DistributedDP",
    "Guard",
    "Identity",
    "JobKey",
    "Ledger",
    "LedgerAccountant",
    "Model",
    "Plan",
    "Release",
    "Robust",
    "Roster",
    "Sampling",
    "SecAggSum",
    "SecureSum",
    "ServerSGD",
    "StrategyLayer",
    "TailAverage",
    "WFAgg",
    "WeightedMean",
    "WholeNumbers",
    "backdoor_test",
    "calibrate",
    "compression_mod",
    "delta_mod",
    "encoder_for",
    "parameters_of",
    "poisoned",
    "private_mod",
    "read_delta",
    "read_sums",
    "refuse_outside_simulation",
    "secagg_mod",
    "secure_mod",
    "sole_reply",
    "with_delta",
    "with_integers",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(app_module(f"strategies.{_HOMES[name]}"), name)
    if name == "stack":
        return app_module("strategies.stack")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
