"""Fixed groups: who is in which, how many attackers they bear, whom the rule sees."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import stack
from strategies.anomaly.layer import Anomaly
from strategies.base import walk
from strategies.guard.layer import Guard
from strategies.robust.layer import Robust
from strategies.robust.wfagg import WFAgg
from strategies.secure.groups import Groups, rename
from strategies.secure.sizes import group_count, objection
from tests.support import runs
from truststram import events
from truststram.errors import ConfigError
from truststram.job import Job

PLAIN = {"robust.rule": "wfagg"}
NAMES = [str(i) for i in range(30)]

names = st.sets(st.text(max_size=8), min_size=3, max_size=60)


@given(names, st.integers(3, 8), st.randoms())
def test_every_node_is_in_one_group_of_at_least_g(names, size, shuffled):
    if len(names) < size:
        with pytest.raises(ValueError, match="do not make a group"):
            Groups.of(names, size, "job")
        return
    groups = Groups.of(names, size, "job")
    sizes = [len(group) for group in groups.members]
    assert len(groups) == group_count(len(names), size)
    assert min(sizes) >= size
    assert max(sizes) - min(sizes) <= 1
    assert sorted(n for group in groups.members for n in group) == sorted(names)
    other = sorted(names)
    shuffled.shuffle(other)
    assert Groups.of(other, size, "job") == groups


def test_groups_depend_on_the_job_and_say_who_is_in_them():
    one, same, other = (Groups.of(NAMES, 3, job) for job in ("a", "a", "b"))
    assert one == same != other
    assert [one.index(name) for name in one.members[4]] == [4, 4, 4]
    assert one.label_of(one.members[4][0]) == "group-4"
    assert one.index("newcomer") is None
    assert one.label_of("newcomer") == "newcomer"
    assert Groups.from_state(json.loads(json.dumps(one.state()))) == one


def test_members_of_a_group_are_not_neighbours_by_name():
    """Whoever registers several nodes in a row gets them into several groups too."""
    groups = Groups.of(NAMES, 3, "job")
    spoiled = {groups.index(name) for name in NAMES[:3]}
    assert len(spoiled) > 1


@pytest.mark.parametrize(("size", "names"), [(2, NAMES), (3, ["a", "b", "c", "a"])])
def test_groups_of_two_and_names_that_come_twice_are_refused(size, names):
    with pytest.raises(ValueError, match=r"expected >= 3|same name"):
        Groups.of(names, size, "job")


@pytest.mark.parametrize(
    ("clients", "size", "f", "fits"),
    [
        (30, 3, 3, True),
        (30, 3, 4, True),
        (30, 3, 5, False),
        (40, 4, 4, True),
        (40, 4, 5, False),
        (20, 3, 4, False),  # 20 % of 20
        (20, 3, 2, True),
        (20, 3, -1, True),
        (2, 3, 0, False),
    ],
)
def test_more_than_twice_as_many_groups_as_attackers(clients, size, f, fits):
    reason = objection(clients, size, f)
    assert (reason is None) is fits
    if reason:
        assert f"below 1 / {2 * size}" in reason
    elif f > 0 and clients % size == 0:
        assert f / clients < 1 / (2 * size)


def grouped(**changes):
    given = {"secure.scheme": "secagg", "secure.group-size": 3, "robust.rule": "wfagg"}
    return Job.of({**given, "round.min-nodes": 20, **changes})


def test_a_fifth_of_attackers_is_refused_before_the_run_and_at_its_start():
    with pytest.raises(ConfigError, match="more attackers than groups can outvote"):
        stack.check(grouped(**{"robust.f": 4}))
    stack.check(grouped(**{"robust.f": 2}))
    # As many nodes as it takes were promised, fewer came.
    job = grouped(**{"robust.f": 4, "round.min-nodes": 27})
    stack.check(job)
    with pytest.raises(ConfigError, match="20 nodes make 6 groups of 3, and 4"):
        Groups.of_job(job, [str(i) for i in range(20)], "run")
    assert len(Groups.of_job(job, NAMES, "run")) == 10


def test_the_stack_judges_groups_by_distance_and_cosine_and_leaves_nobody_out():
    layers = {type(x).__name__: x for x in walk(stack.build(grouped()))}
    assert next(iter(layers)) == "SecAggSum"  # outside all that judges
    assert layers["Robust"].rule.temporal is False
    assert layers["Robust"].auto_f
    assert layers["Anomaly"].quarantine == 0
    plain = {type(x).__name__: x for x in walk(stack.build(Job.of(PLAIN)))}
    assert plain["Robust"].rule.temporal is True
    assert plain["Anomaly"].quarantine == 10


def test_layers_inside_see_groups():
    groups = Groups.of(NAMES, 3, "job")
    strategy = Anomaly(Guard(Robust(WFAgg(1, temporal=False))), quarantine=0)
    rename(strategy, groups, str)
    for layer in walk(strategy):
        if hasattr(layer, "name_of"):
            assert layer.name_of(7) == groups.label_of("7")


def test_attacks_made_from_honest_updates_are_refused_in_groups_too():
    attack = {"adversary.fraction": 0.1, "robust.f": 2}
    stack.check(grouped(**attack, **{"adversary.kind": "label-flip"}))
    with pytest.raises(ConfigError, match=r"adversary\.kind with a secure sum"):
        stack.check(grouped(**attack, **{"adversary.kind": "ipm"}))


@pytest.mark.parametrize("scheme", ["bfv", "secagg"])
def test_groups_with_a_poisoned_member_are_the_malicious_ones(tmp_path, scheme):
    """Round by round, and also for a run that goes on in another process."""
    job = {
        "secure.scheme": scheme,
        "secure.group-size": 3,
        "robust.rule": "median",
        "robust.f": 1,
        "round.min-nodes": 9,
        "adversary.kind": "label-flip",
        "adversary.fraction": 0.2,
        "train.rounds": 2,
    }
    runs.run(tmp_path, "run", job, nodes=9)
    again = {**job, "train.rounds": 3, "run.resume": "run"}
    result = runs.run(tmp_path, "run", again, nodes=9)
    assert result.status == "completed"
    told = events.read(tmp_path / "run" / "events.jsonl")
    named = [event["nodes"] for event in told if event["kind"] == "adversary"]
    assert len(named) == 3
    assert named[0]
    assert all(name.startswith("group-") for name in named[0])
    assert named == named[:1] * 3


def rounds(count, bad=(), seed=0, groups=10, d=40):
    rng = np.random.default_rng(seed)
    goal = rng.normal(size=d)
    for _ in range(count):
        rows = goal + 0.5 * rng.normal(size=(groups, d))
        for i in bad:
            rows[i] = -2 * goal
        yield [row.astype(np.float32) for row in rows]


def test_under_groups_distance_and_cosine_must_both_pass():
    labels = [f"group-{i}" for i in range(10)]
    both, usual = WFAgg(3, temporal=False), WFAgg(3)
    for rows in rounds(6, bad=(1, 4)):
        decision, other = both(rows, labels), usual(rows, labels)
        for evidence, share in zip(decision.evidence, decision.shares, strict=True):
            near = evidence["distance"] <= evidence["distance-limit"]
            near &= evidence["norm"] <= evidence["norm-limit"]
            along = evidence["cosine"] <= evidence["cosine-limit"]
            assert bool(share > 0) is bool(near and along)
            assert not any(name.startswith("change") for name in evidence)
            assert "temporal" not in evidence["failed"]
    assert decision.rejected == [1, 4]
    assert any(name.startswith("change") for name in other.evidence[0])


@pytest.mark.parametrize("temporal", [True, False])
def test_a_steady_row_needs_distance_and_cosine_without_the_third_vote(temporal):
    """Twelve times as long, always the same, in the honest direction."""
    labels, rule = [f"group-{i}" for i in range(10)], WFAgg(3, temporal=temporal)
    history = list(rounds(6))
    steady = 12 * np.mean(history[0], axis=0)
    for rows in history:
        rows[3] = steady
        decision = rule(rows, labels)
    assert decision.evidence[3]["failed"] == ["distance"]
    assert bool(decision.shares[3] > 0) is temporal
