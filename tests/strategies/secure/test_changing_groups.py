"""Groups that change with the model: what they are, and what they give away."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import stack
from strategies.base import walk
from strategies.mean.layer import WeightedMean
from strategies.secure.groups import Groups
from strategies.secure.trust import trust_line
from strategies.server_sgd import ServerSGD
from tests.strategies.secure import masked, support
from tests.strategies.secure.masked import STEPS
from tests.support import runs
from tests.support.federation import model, weights
from truststram import events
from truststram._flower import become_task
from truststram.job import Job

NODES, SIZE = 12, 3
CHANGING = {
    "secure.scheme": "secagg",
    "secure.group-size": SIZE,
    "secure.regroup": True,
    "robust.rule": "wfagg",
    "round.min-nodes": NODES,
}
models = st.text("0123456789abcdef", min_size=4, max_size=4)


def sets(groups):
    return {frozenset(group) for group in groups}


@given(st.integers(SIZE, 40), models, models)
def test_the_same_nodes_are_in_as_many_groups_of_the_same_sizes(nodes, one, other):
    names = [str(i) for i in range(nodes)]
    first = Groups.of(names, SIZE, "run")
    again = first.redrawn(one)
    assert sorted(n for group in again.members for n in group) == sorted(names)
    sizes = [sorted(map(len, groups.members)) for groups in (first, again)]
    assert sizes[0] == sizes[1]
    assert again == Groups.from_state(json.loads(json.dumps(first.state()))).redrawn(
        one
    )
    if nodes >= 30 and one != other:
        assert again != first.redrawn(other)


def test_every_two_nodes_meet_about_as_often_as_if_all_were_shuffled():
    """Standard error of a pair's frequency: 0.011; 66 pairs within 5 of them."""
    first, draws = Groups.of([str(i) for i in range(NODES)], SIZE, "run"), 1200
    together = np.zeros((NODES, NODES))
    for draw in range(draws):
        for group in first.redrawn(str(draw)).members:
            index = np.array(group, int)
            together[np.ix_(index, index)] += 1
    pairs = together[np.triu_indices(NODES, 1)] / draws
    assert np.abs(pairs - (SIZE - 1) / (NODES - 1)).max() < 5 * 0.011


def rows(groups, nodes):
    """Return which of the nodes are in each group's sum, (groups, nodes)."""
    found = np.zeros((len(groups), nodes))
    for i, group in enumerate(groups.members):
        found[i, np.array(group, int)] = 1
    return found


def test_sums_over_changing_groups_solve_for_single_nodes_and_over_fixed_ones_do_not():
    """Of nodes whose updates stay the same, after (K - 1) / (K / g - 1) rounds."""
    nodes = 30
    updates = np.random.default_rng(0).normal(size=(nodes, 50))
    first = Groups.of([str(i) for i in range(nodes)], SIZE, "run")
    count = -(-(nodes - 1) // (len(first) - 1))
    assert count == 4
    changing = np.vstack([rows(first.redrawn(str(r)), nodes) for r in range(count)])
    fixed = np.vstack([rows(first, nodes)] * 100)
    found = np.linalg.lstsq(changing, changing @ updates, rcond=None)[0]
    np.testing.assert_allclose(found, updates, atol=1e-9)
    assert np.linalg.matrix_rank(changing) == nodes
    # Fixed groups tell of no node more than its group's sum, after 100 rounds neither.
    assert np.linalg.matrix_rank(fixed) == len(first)
    for node in range(nodes):
        alone = np.vstack([fixed, np.eye(nodes)[node]])
        assert np.linalg.matrix_rank(alone) == len(first) + 1


def equal_mean():
    return WeightedMean(ServerSGD(), weighted=False)


class Masked:
    """Sums of masked updates."""

    def __init__(self, regroup=True):
        keys = {"group-size": SIZE, "regroup": regroup}
        job = {f"secure.{k}": v for k, v in keys.items()}
        job |= {"round.min-nodes": NODES}
        self.f = masked.Federation(NODES, inner=equal_mean, **job)
        self.told = self.f.of

    def round(self, value):
        self.f.arrays = model(value)
        return self.f.round()[0]


class Encrypted:
    """Sums of ciphertexts; a node of its own decrypts."""

    def __init__(self, regroup=True):
        keys = {"key_holder": "decryptor", "round.min-nodes": NODES + 1}
        job = support.job_of("bfv", group_size=SIZE, regroup=regroup, **keys)
        amount = lambda node, number: STEPS[node]  # noqa: E731  # shorter than a def
        self.f = support.Round(job, NODES + 1, amount, inner=equal_mean())
        self.told = self.f.told

    def round(self, value):
        self.f.base = model(value)
        arrays, _ = self.f.run()
        return None if arrays is None else weights(arrays)


@pytest.fixture(params=[Masked, Encrypted])
def kind(request):
    yield request.param
    become_task(1)


def test_a_layer_sums_over_other_groups_for_another_model_only(kind):
    made = kind()
    expected = np.mean([STEPS[i] for i in range(NODES)])
    for value in (0.1, 0.2, 0.2, 0.3):
        np.testing.assert_allclose(made.round(value) - value, expected, atol=1e-3)
    drawn = [sets(event["groups"]) for event in made.told("secure-groups")]
    assert [event["clients"] for event in made.told("secure-sum")] == [SIZE] * 16
    assert drawn[1] == drawn[2]
    assert drawn[0] != drawn[1] != drawn[3] != drawn[0]
    assert made.told("reply-dropped") == made.told("secure-refused") == []


def test_nodes_refuse_sums_over_two_divisions_for_one_model(kind):
    made = kind()
    assert made.round(0.1) is not None
    # A server that divides its nodes in another way for the same model.
    names = [n for group in made.f.layer._groups.members for n in group]
    made.f.layer._groups = Groups.of(names, SIZE, "another run")
    assert made.round(0.1) is None
    drawn = [sets(event["groups"]) for event in made.told("secure-groups")]
    assert drawn[0] != drawn[1]
    assert len(made.told("secure-sum")) == 4
    assert made.round(0.2) is not None


def test_groups_stay_and_are_not_told_without_the_setting(kind):
    made = kind(regroup=False)
    for value in (0.1, 0.2):
        assert made.round(value) is not None
    assert made.told("secure-groups") == []
    [told] = made.told("secure-plan")
    assert "solve" not in told["trust"]


def test_a_resumed_run_has_the_same_groups_for_the_same_model(kind):
    before, after = kind(), kind()
    before.round(0.1)
    after.f.layer.load_state(json.loads(json.dumps(before.f.layer.state())))
    become_task(2)  # a resume is another run of Flower's
    for node in after.f.grid.get_node_ids():
        after.f.grid.context(node).run_id = 2
    after.round(0.1)
    one, other = (made.told("secure-groups")[0]["groups"] for made in (before, after))
    assert one == other


def test_the_trust_line_says_what_changing_groups_give_away():
    fixed = Job.of({**CHANGING, "secure.regroup": False})
    assert "solve for single nodes' updates" in trust_line(Job.of(CHANGING))
    assert trust_line(Job.of(CHANGING)).startswith(trust_line(fixed))
    assert "solve" not in trust_line(fixed)
    noise = {"privacy.mechanism": "skellam", "privacy.trust": "distributed"}
    assert "within the privacy budget" in trust_line(Job.of({**CHANGING, **noise}))


def test_the_rule_keeps_no_average_of_groups_that_change():
    def rule(regroup):
        layers = walk(stack.build(Job.of({**CHANGING, "secure.regroup": regroup})))
        [found] = [x for x in layers if type(x).__name__ == "Robust"]
        return found.rule

    directions = np.random.default_rng(0).normal(size=(2, 4, 30)).astype(np.float32)
    labels = [f"group-{i}" for i in range(4)]
    for regroup in (True, False):
        used, fresh = rule(regroup), rule(regroup)
        used(list(directions[0]), labels)
        again, first = (r(list(directions[1]), labels) for r in (used, fresh))
        same = np.array_equal(again.update, first.update)
        assert same is regroup


def test_a_poisoned_node_spoils_other_groups_in_other_rounds(tmp_path):
    job = {
        **CHANGING,
        "round.min-nodes": 9,
        "adversary.kind": "label-flip",
        "adversary.fraction": 0.12,  # one of nine
        "train.rounds": 3,
    }
    result = runs.run(tmp_path, changes=job, nodes=9)
    assert result.status == "completed"
    told = events.read(result.dir / "events.jsonl")
    groups = [e["groups"] for e in told if e["kind"] == "secure-groups"]
    named = [e["nodes"] for e in told if e["kind"] == "adversary"]
    spoilt = [
        set(found[int(name.removeprefix("group-"))])
        for found, [name] in zip(groups, named, strict=True)
    ]
    # Who was in all of them is the one.
    assert set.intersection(*spoilt)
    assert len(set(map(frozenset, spoilt))) > 1
