"""Server half of the adversary: attacks on updates, computed where all of them meet.

In a simulation the server sees every update before any defence does, which is what an
omniscient attacker is assumed to see. The other half (:mod:`.mod`) poisons data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from truststram.errors import ConfigError, ProtocolError, RunError
from truststram.rng import derive

from ..base import StrategyLayer
from ..update import read_delta, with_delta
from .core import ATTACKS, DATA_ATTACKS
from .geometry import Floats
from .who import malicious_partitions, name_order

__all__ = ["Adversary"]


class Adversary(StrategyLayer):
    """Replace the updates of malicious nodes by an attack. For simulations only.

    Must see updates as they are: outside every defence, inside whatever decodes.

    Parameters
    ----------
    inner : Strategy
        What is attacked.
    kind : str
        A key of :data:`~.core.ATTACKS`, or ``"none"``: nobody is malicious.
    fraction : float
        Part of the nodes that is malicious, in [0, 1].
    strength : float
        Strength of the attack; each one says what it means.
    seed : int
        The run's seed: decides who is malicious and all randomness of the attacks.

    Attributes
    ----------
    truth : frozenset of str
        Names of the malicious nodes, known from the first round on.

    Guarantees
    ----------
    The malicious nodes are ``fraction`` of the connected ones (half up), the same in
    every round, drawn by place in the order of names: in a simulation by partition, as
    :func:`~.who.malicious_partitions` says. Replies of honest nodes pass unchanged, bit
    for bit. A changed reply keeps its metrics and number of examples; its update is the
    attack's, computed from the finite updates of this round's honest replies. In a
    round without any, nothing is changed.

    Events
    ------
    ``adversary`` (round, attack, nodes): the nodes whose reply is malicious in this
    round. (A ``drift`` node is malicious, but not before it drifts.) Inside secure sums
    of groups a reply is a group's: the groups that have a malicious member.

    Raises
    ------
    ConfigError
        In the first round: nobody is malicious, nobody is honest, or the data were
        poisoned by partition and the nodes are not named so.
    RunError
        If nodes join or leave for good, or no reply at all can be read.
    """

    needs_plaintext = True
    linear = False

    def __init__(
        self,
        inner: Strategy,
        *,
        kind: str,
        fraction: float,
        strength: float = 1.0,
        seed: int = 1,
    ) -> None:
        super().__init__(inner)
        if kind != "none" and kind not in ATTACKS:
            known = ", ".join(["none", *ATTACKS])
            raise ValueError(f"Expected kind={kind!r} to be one of {known}.")
        self.kind, self.fraction, self.strength = kind, fraction, strength
        self._seed = seed
        self._nodes = 0  # number of nodes that the truth is about
        self._truth: frozenset[str] = frozenset()
        self._malicious: frozenset[int] | None = None  # their ids, in this process
        self._memory: dict[str, Any] = {}

    @property
    def truth(self) -> frozenset[str]:
        """Names of the malicious nodes."""
        if self.kind != "none" and not self._nodes:
            raise RuntimeError("configure_train must be called before truth is known")
        return self._truth

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let ``inner`` wait for nodes and choose; then settle who is malicious."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self.kind != "none":
            self._settle(list(grid.get_node_ids()))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Attack, then hand on all replies."""
        replies = list(replies)
        if self.kind != "none":
            nodes = self._attack(server_round, replies)
            self.emit("adversary", round=server_round, attack=self.kind, nodes=nodes)
        return self.hand_on(server_round, replies)

    def describe(self) -> str:
        """Return one line for the strategy summary."""
        return (
            f"Adversary ({self.kind}, fraction {self.fraction:g}, "
            f"strength {self.strength:g})"
        )

    def state(self) -> dict[str, Any]:
        """Return who is malicious and what the attackers remember."""
        return {
            "nodes": self._nodes,
            "truth": sorted(self._truth, key=name_order),
            "memory": dict(self._memory),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._nodes = int(state["nodes"])
        self._truth = frozenset(state["truth"])
        self._malicious = None
        self._memory = dict(state["memory"])

    def _settle(self, nodes: list[int]) -> None:
        """Decide in the first round who is malicious; check it later.

        Names count in a process's first round only: a layer outside may give the nodes
        those of their groups from then on.
        """
        if self._malicious is None:
            names = {self.name_of(node): node for node in nodes}
            if not self._nodes:
                self._choose(sorted(names, key=name_order))
            if self._truth <= set(names):
                self._malicious = frozenset(names[name] for name in self._truth)
        if len(nodes) != self._nodes or not (
            self._malicious is not None and self._malicious <= set(nodes)
        ):
            raise RunError(
                f"The adversary was chosen among {self._nodes} nodes and now there "
                f"are {len(nodes)}. Simulate as many as in the first round."
            )

    def _choose(self, names: list[str]) -> None:
        chosen = malicious_partitions(self._seed, len(names), self.fraction)
        setting = f"adversary.fraction = {self.fraction:g} of {len(names)} nodes"
        if not chosen:
            raise ConfigError(f"{setting}: no node is malicious. Raise it.")
        if len(chosen) == len(names) and self.kind not in DATA_ATTACKS:
            raise ConfigError(f"{setting}: no honest node is left. Lower it.")
        partitions = [str(i) for i in range(len(names))]
        if self.kind in DATA_ATTACKS and names != partitions:
            raise ConfigError(
                f"adversary.kind = {self.kind}: data are poisoned by partition, but "
                f"the nodes are not the partitions 0 to {len(names) - 1}. Simulate, or "
                "choose an attack on updates."
            )
        self._nodes = len(names)
        self._truth = frozenset(names[i] for i in chosen)

    def _attack(self, server_round: int, replies: Sequence[Message]) -> list[str]:
        """Replace the malicious updates; return the names of the attackers."""
        found = self._read(replies)
        malicious = {self.name_of(node) for node in self._malicious or ()}
        bad = [name for name in found if name in malicious]
        good = [name for name in found if name not in malicious]
        if not bad or not (good or self.kind in DATA_ATTACKS):
            return []
        own = [found[name][1] for name in bad]
        memory = {**self._memory, "round": server_round, "names": good}
        made = ATTACKS[self.kind](
            [found[name][1] for name in good],
            own,
            self.strength,
            derive(self._seed, "adversary", server_round),
            memory,
        )
        self._memory = {k: v for k, v in memory.items() if k not in ("round", "names")}
        attackers = []
        for name, before, after in zip(bad, own, made, strict=True):
            changed = not np.array_equal(before, after)
            if changed:
                reply = found[name][0]
                reply.content = with_delta(reply.content, after)
            if changed or self.kind in DATA_ATTACKS:
                attackers.append(name)
        return attackers

    def _read(self, replies: Sequence[Message]) -> dict[str, tuple[Message, Floats]]:
        """Return name -> (reply, update) of all readable replies, in order of names."""
        found: dict[str, tuple[Message, Floats]] = {}
        contents = [reply for reply in replies if reply.has_content()]
        unread = []
        for reply in contents:
            try:
                delta = read_delta(reply.content, self.model)
            except ProtocolError as error:
                unread.append(error)
                continue
            if np.isfinite(delta).all():
                name = self.name_of(reply.metadata.src_node_id)
                found.setdefault(name, (reply, delta))
        if unread and len(unread) == len(contents):
            raise RunError(
                f"The adversary can read no reply ({unread[0]}). Put it inside the "
                "layer that decodes them."
            )
        return {name: found[name] for name in sorted(found, key=name_order)}
