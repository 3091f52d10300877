"""Groups: secure sums inside them, a robust rule across their means.

A robust rule must see several updates, a secure sum shows one. Summing inside groups of
g clients and judging the groups' means is both (Velicheti, Xia and Koyejo, "Secure
Byzantine-Robust Distributed Learning via Clustering", arXiv 2110.02940). Differences:
there the clusters are drawn anew in every round and here they are fixed for the job,
unless ``secure.regroup`` says otherwise, and the mean of too few clients is not looked
at.

Why the groups are fixed
------------------------
From means over other groups in every round the server could compute single clients'
updates by regression, since updates of a client resemble each other. From means over
the same groups it learns the same sums again. Nodes see to it: they refuse, within one
Flower run, sums in which a node would have been together with more others than the
largest group has (:meth:`.journal.Journal.together`): with secure aggregation everyone
before it masks its update, under homomorphic encryption those that decrypt. What is
left to a server that regroups is what dropouts tell of a group of that size. Another
Flower run, which a server may start, may have other groups: nodes do not compare runs.

Groups that change
------------------
``secure.regroup`` draws them anew whenever the model has changed, and says before the
run what that gives away. In fixed groups the honest neighbours of a malicious node may
never be heard; in changing ones they are in the rounds in which another group is
spoilt, and groups that are left out round after round point at who was in all of them
(the event ``secure-groups`` names their members). WFAgg then keeps no average of past
rounds, and what events say of ``group-2`` over rounds is about a place, not about the
same nodes. The price: K clients whose updates
stay the same are known to the last one after about ``(K - 1) / (K / g - 1)`` rounds,
by solving linear equations; what differs from round to round is noise to that. Noise
of differential privacy in each sum (``privacy.trust = distributed``) bounds what can be
learnt all the same, since its account counts every round's sums, whoever is in them.

While the model stays, so do the groups, whatever the round and also in a run that is
resumed: of one model no node is in sums with two sets of others (:mod:`.journal`).

What a group costs
------------------
One malicious client spoils its group: f of K clients spoil up to f of the K / g groups.
A rule that outvotes f groups needs more than 2 f of them, so ``f / K < 1 / (2 g)``: at
g = 3 less than a sixth of the clients. The server sees the mean of g clients instead of
that of all: with c of them colluding with the server, the mean of g - c. So a group
that has fewer than ``3 + c`` survivors is discarded.

What the rule says is about groups. Nothing in it tells which member is malicious, so
nobody is left out of later rounds for it: one attacker would take g - 1 honest clients
with it, round after round, that the rule leaves out in bad rounds only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from flwr.serverapp.strategy import Strategy

from truststram.errors import ConfigError, ProtocolError
from truststram.job import Job

from ..base import StrategyLayer, walk
from .sizes import LEAST, group_count, largest_group, nodes_of, objection

if TYPE_CHECKING:
    from .telling import Telling

__all__ = [
    "Groups",
    "of_round",
    "rename",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Groups:
    """Who is in which group.

    Attributes
    ----------
    members : tuple of tuples of str
        The nodes' stable names, group by group.
    """

    members: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, names: Collection[str], size: int, job: str) -> Groups:
        """Divide the registered nodes.

        Parameters
        ----------
        names : collection of str
            Stable names of the nodes that are registered when the job begins. Their
            order does not matter.
        size : int
            g, at least 3: the smallest group. Nodes that are left over join groups, so
            that sizes differ by at most one.
        job : str
            Identity of the job: other jobs have other groups. It need not be secret:
            who could choose names to his advantage could as well register more nodes.

        Raises
        ------
        ValueError
            For too few names, a smaller size, or a name that comes twice.
        """
        if size < LEAST:
            raise ValueError(f"size = {size}: expected >= {LEAST}.")
        if len(set(names)) != len(names):
            raise ValueError("Two nodes have the same name.")
        count = group_count(len(names), size)
        if not count:
            raise ValueError(f"{len(names)} nodes do not make a group of {size}.")
        return cls._drawn(names, count, job)

    @classmethod
    def _drawn(cls, names: Iterable[str], count: int, lot: str) -> Groups:
        def key(name: str) -> bytes:  # the length keeps lot and name apart
            text = f"{len(lot)}:{lot}{name}"
            return hashlib.sha256(text.encode()).digest()

        order = sorted(names, key=key)
        return cls(tuple(tuple(order[i::count]) for i in range(count)))

    def redrawn(self, model: str) -> Groups:
        """Divide the same nodes into as many other groups: the same for each model.

        Parameters
        ----------
        model : str
            Hash of the model that a round begins with.
        """
        lot = hashlib.sha256(repr((self.members, model)).encode()).hexdigest()
        names = [name for group in self.members for name in group]
        return self._drawn(names, len(self), lot)

    @classmethod
    def of_job(cls, job: Job, names: Collection[str], run: str) -> Groups:
        """Divide the nodes of a run, if its rule can outvote ``robust.f`` groups.

        Raises
        ------
        ConfigError
            If it cannot.
        """
        size = job.secure.group_size
        if reason := objection(len(names), size, job.robust.f):
            raise ConfigError(f"secure.group-size: {reason}.")
        return cls.of(names, size, run)

    @classmethod
    def settled(
        cls, known: Groups | None, job: Job, names: Collection[str], run: str
    ) -> Groups | None:
        """Return the groups of a run: ``known`` ones, or new ones if the job has any.

        Raises
        ------
        ConfigError
            As :meth:`of_job`, or for new groups larger than a sum can be, or than nodes
            will believe (:func:`.sizes.largest_group`).
        """
        if known or not job.secure.group_size:
            return known
        made = cls.of_job(job, names, run)
        found, most = max(map(len, made.members)), job.secure.max_cohort
        if found > most:
            raise ConfigError(
                f"A group has {found} nodes and secure.max-cohort is {most}. Raise it, "
                "or lower secure.group-size."
            )
        if job.secure.keeps_groups and found > (most := largest_group(job)):
            least = nodes_of(job, len(names))
            raise ConfigError(
                f"A group has {found} nodes, and as the job is, nodes take part in "
                f"groups of {most} at most. Set round.min-nodes = {least}, which tells "
                "them how many there are."
            )
        return made

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, group in enumerate(self.members) for name in group}

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.members)

    def index(self, name: str) -> int | None:
        """Return the group of a node; None for one that came later: it has none."""
        return self._index.get(name)

    def parted(
        self,
        items: Iterable[T],
        name_of: Callable[[T], str],
        drop: Callable[[T, ProtocolError], object],
    ) -> list[list[T]]:
        """Return what is of each group's nodes; ``drop`` gets what is of none."""
        parts: list[list[T]] = [[] for _ in self.members]
        for item in items:
            index = self.index(name_of(item))
            if index is None:  # its node came after the groups were made
                drop(item, ProtocolError("unknown-node", "the node is in no group"))
            else:
                parts[index].append(item)
        return parts

    def label(self, index: int) -> str:
        """Return the name of a group, which stands for a node's inside the layer."""
        return f"group-{index}"

    def label_of(self, name: str) -> str:
        """Return the name of a node's group; the node's own if it has none."""
        index = self.index(name)
        return name if index is None else self.label(index)

    def state(self) -> list[list[str]]:
        """Return the groups as JSON values, for a resumed run."""
        return [list(group) for group in self.members]

    @classmethod
    def from_state(cls, state: Sequence[Sequence[str]]) -> Groups:
        """Return what :meth:`state` was made of."""
        return cls(tuple(tuple(str(name) for name in group) for group in state))


def of_round(
    groups: Groups | None, job: Job, model: str, inner: Strategy, telling: Telling
) -> Groups | None:
    """Return the groups of a round, by which the layers inside name nodes from now on.

    With ``secure.regroup`` these are others for another model, and are told.
    """
    if groups is None:
        return None
    if job.secure.regroup:
        groups = groups.redrawn(model)
        telling.groups(groups.state())
    rename(inner, groups, telling.name_of)
    return groups


def rename(inner: Strategy, groups: Groups, name_of: Callable[[int], str]) -> None:
    """Give every layer inside other names for nodes: those of their groups.

    Guard, anomaly detection and rule then see one reply for each group, and their
    events and memories are about groups.
    """
    for layer in walk(inner):
        if isinstance(layer, StrategyLayer):
            layer.name_of = lambda node: groups.label_of(name_of(node))
