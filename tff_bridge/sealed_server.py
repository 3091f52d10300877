"""The server of a plan with secure sums: it gives the exact sums to ``update``.

Inside :class:`strategies.secure.secagg_layer.SecAggSum` only, which reads from
``integers`` what the silos will send, and hands on their sums
(:mod:`strategies.secure.integers`). What silos are sent, and the state, are as in
:mod:`.strategy`.
"""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.common.logger import log

from truststram.techniques import read_sums, sole_reply

from .leaves import Leaves
from .sealed import SealedLayout
from .strategy import TFFServer

__all__ = ["SealedServer"]


class SealedServer(TFFServer):
    """Take TFF's server step with the exact sums of the silos' integers.

    Parameters as for :class:`.strategy.TFFServer`.

    Guarantees
    ----------
    The state after a round is what the plan's ``update`` makes of the state before and
    of the sums of the silos' integers, as TensorFlow Federated's own execution has it
    for these silos. A step to a state that is not finite is not taken, as there.

    Raises
    ------
    ValueError
        In ``aggregate_train``, for more than one reply or one without sums.
    """

    @property
    def sealed(self) -> SealedLayout:
        """What silos send."""
        layout = self._training.sealed
        assert layout is not None
        return layout

    @property
    def integers(self) -> tuple[tuple[int, int], ...]:
        """How many integers silos send, and what each is below."""
        return self.sealed.runs

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step with the sums; without a reply, model and state stay as they are."""
        inside = "SecAggSum(job, SealedServer(...), ...)"
        content = sole_reply(replies, "SealedServer", inside)
        if content is None:
            return None, None
        sums = self.sealed.sums_of(read_sums(content))
        report: Leaves = []
        if self._training.program.pieces["report"].outputs:
            report = self._coordinator.report([])  # of nothing: all is in the sums
        state, found = self._coordinator.update(self._state, [*report, *sums])
        return self._stepped(server_round, state, found)

    def summary(self) -> None:
        """Log what is summed, then the plan."""
        log(INFO, "\t├──> SealedServer: exact sums of %d integers", self.sealed.size)
        super().summary()
