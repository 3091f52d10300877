"""Groups are fixed for a run: nodes do not take the server's word for it."""

from __future__ import annotations

import pytest

from strategies.mean.layer import WeightedMean
from strategies.secure.told import Told
from strategies.server_sgd import ServerSGD
from tests.strategies.secure import masked, support
from tests.support.federation import model
from truststram._flower import become_task

# Of ten nodes: no group of such a job has more than four.
NODES = 10
GROUPS = ([0, 1, 2, 3], [4, 5, 6], [7, 8, 9])


class Masked:
    """Sums of masked updates, in groups."""

    without_it = (3, 3)  # of 0, 1, 2 and of the last group

    def __init__(self):
        job = {"secure.group-size": 3, "round.min-nodes": NODES}
        self.f = masked.Federation(NODES, inner=WeightedMean, **job)
        self.told = self.f.of

    def regroup(self, *groups):
        names = list(map(str, self.f.grid.get_node_ids()))
        self.f.layer.load_state({"groups": [[names[i] for i in g] for g in groups]})

    def round(self, value, gone=()):
        """Run a round with another model; return the sizes of the sums."""
        self.f.arrays, self.f.gone = model(value), {"keys": gone}
        before = len(self.told("secure-sum"))
        self.f.round()
        return [event["clients"] for event in self.told("secure-sum")[before:]]

    def refusals(self):
        return [e["detail"] for e in self.told("reply-dropped")]


class Encrypted:
    """Sums of ciphertexts, in groups; a node of its own decrypts."""

    without_it = (3,)

    def __init__(self):
        keys = {"key_holder": "decryptor", "round.min-nodes": NODES + 1}
        job = support.job_of("bfv", group_size=3, **keys)
        self.f = support.Round(job, NODES + 1, inner=WeightedMean(ServerSGD()))
        self.told = self.f.told

    def regroup(self, *groups):
        names = list(map(str, self.f.grid.get_node_ids()))
        found = [[names[i] for i in g] for g in groups]
        self.f.layer.load_state({"groups": found, "told": Told().state()})

    def round(self, value, gone=()):
        self.f.base = model(value)
        before = len(self.told("secure-sum"))
        lost = {self.f.grid.get_node_ids()[i] for i in gone}
        replies = self.f.replies()
        self.f.finish([r for r in replies if r.metadata.src_node_id not in lost])
        return [event["clients"] for event in self.told("secure-sum")[before:]]

    def refusals(self):
        return [e["detail"] for e in self.told("secure-refused")]


@pytest.fixture(params=[Masked, Encrypted])
def made(request):
    found = request.param()
    found.regroup(*GROUPS)
    yield found
    become_task(1)


def new_run(f):
    """Let the same nodes, with what they remember, begin another run."""
    become_task(2)
    for node in f.grid.get_node_ids():
        f.grid.context(node).run_id = 2
    f.layer._federation = None


def test_nodes_of_a_group_may_drop_out_and_come_back(made):
    assert made.round(0.1, gone=[2]) == [3, 3, 3]
    assert made.round(0.2, gone=[0]) == [3, 3, 3]
    assert made.round(0.3) == [4, 3, 3]
    assert made.round(0.4, gone=[5]) == [4, 3]  # two are left of that group
    assert made.round(0.5) == [4, 3, 3]
    assert not any("regrouped" in text for text in made.refusals())


def test_regrouping_is_refused_and_the_old_groups_go_on(made):
    made.round(0.1)
    made.regroup([0, 1, 2, 4], [3, 5, 6], GROUPS[2])
    assert made.round(0.2) == [3]  # of the group that is as it was
    assert "regrouped" in made.refusals()[-1]
    made.regroup(*GROUPS)
    assert made.round(0.3) == [4, 3, 3]


def test_a_node_of_another_group_does_not_fill_an_empty_place(made):
    made.round(0.1, gone=[3])
    made.regroup([0, 1, 2, 4], [5, 6], GROUPS[2])
    # With secure aggregation 4 drops out; a decryptor refuses a sum with it.
    assert made.round(0.2) == list(made.without_it)
    assert "regrouped" in " ".join(made.refusals())


def test_another_run_has_groups_of_its_own(made):
    made.round(0.1)
    new_run(made.f)
    made.regroup([0, 1, 2, 4], [3, 5, 6], GROUPS[2])
    assert made.round(0.2) == [4, 3, 3]
