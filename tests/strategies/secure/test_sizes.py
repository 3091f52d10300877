"""Rounds begin with enough nodes for their sums, and groups are not too large."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import stack
from strategies.secure.groups import Groups
from strategies.secure.sizes import largest_group, least_nodes, nodes_for, objection
from tests.support.runs import run
from truststram.errors import ConfigError, RunError
from truststram.job import Job
from truststram.runner import _check_job

SECAGG = {"secure.scheme": "secagg"}
BFV = {"secure.scheme": "bfv"}
DECRYPTOR = {**BFV, "secure.key-holder": "decryptor"}
GROUPED = {**SECAGG, "secure.group-size": 4, "robust.rule": "median"}


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, 2),
        ({"round.fraction": 0.1}, 2),
        (SECAGG, 3),
        ({**SECAGG, "secure.min-cohort": 20}, 20),
        ({**SECAGG, "round.fraction": 0.5}, 6),
        ({**SECAGG, "round.fraction": 0.7}, 5),
        ({**SECAGG, "round.fraction": 0.1}, 30),
        ({**SECAGG, "round.quorum": 0.5}, 5),
        (DECRYPTOR, 4),
        ({**DECRYPTOR, "round.fraction": 0.5}, 8),
        ({**GROUPED, "robust.f": 2}, 20),
        ({**GROUPED, "robust.f": -1}, 4),
        # Said by the user.
        ({**SECAGG, "round.min-nodes": 7}, 7),
        ({**SECAGG, "round.min-nodes": 1}, 1),
    ],
)
def test_the_least_number_of_nodes(changes, least):
    job = Job.of(changes)
    assert least_nodes(job) == stack.least_nodes(job) == least
    assert stack.sampling(job)["min_available_nodes"] == least


@given(
    st.integers(3, 400),
    st.floats(0.01, 1.0),
    st.floats(0.01, 1.0),
    st.sampled_from(["clients", "decryptor"]),
)
def test_it_is_the_smallest_that_gives_every_round_its_replies(
    cohort, fraction, quorum, holder
):
    keys = {"round.fraction": fraction, "round.quorum": quorum}
    keys |= {"secure.min-cohort": cohort, "secure.key-holder": holder}
    found = least_nodes(Job.of({**BFV, **keys, "secure.max-cohort": 400}))

    def replies(nodes):
        return ceil(quorum * (int(nodes * fraction) - (holder == "decryptor")))

    assert replies(found) >= cohort
    assert replies(found - 1) < cohort


@pytest.mark.parametrize("f", [-1, 0, 1, 5])
def test_groups_of_so_many_outvote_f(f):
    assert objection(nodes_for(3, f), 3, f) is None
    assert objection(nodes_for(3, f) - 1, 3, f) is not None


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (3, {}),
        (4, {"robust.f": 1}),
        (5, {"round.min-nodes": 20}),
        (4, {"secure.max-cohort": 5}),
        (3, {"secure.scheme": "bfv", "secure.key-holder": "decryptor"}),
    ],
)
def test_no_group_is_larger_than_the_job_allows_and_some_is_as_large(size, changes):
    job = Job.of({**GROUPED, "secure.group-size": size, "robust.f": -1, **changes})
    spare = job.secure.key_holder == "decryptor"
    largest = 0
    for nodes in range(least_nodes(job) - spare, 100):
        groups = Groups.of(list(map(str, range(nodes))), size, "job").members
        if len(groups) > 2 * job.robust.f:
            largest = max(largest, *map(len, groups))
    assert largest_group(job) == min(largest, job.secure.max_cohort)


@pytest.mark.parametrize("holder", ["clients", "decryptor"])
def test_groups_that_nodes_would_not_take_part_in_are_not_made(holder):
    names = list(map(str, range(19)))  # one group of 19
    keys = {"secure.group-size": 10, "secure.key-holder": holder}
    job = Job.of({**GROUPED, **BFV, **keys, "round.min-nodes": 30})
    needed = 19 + (holder == "decryptor")
    with pytest.raises(ConfigError, match=rf"round\.min-nodes = {needed},"):
        Groups.settled(None, job, names, "run")
    said = job.replace({"round.min-nodes": needed})
    [group] = Groups.settled(None, said, names, "run").members
    assert len(group) == largest_group(said) == 19
    # The same nodes in other groups for each model: nobody compares them.
    assert Groups.settled(None, job.replace({"secure.regroup": True}), names, "run")
    with pytest.raises(ConfigError, match=r"secure\.max-cohort is 18\. Raise it"):
        Groups.settled(None, said.replace({"secure.max-cohort": 18}), names, "run")


@pytest.mark.parametrize("size", [3, 4, 10])
def test_by_default_a_group_can_have_less_than_twice_the_size(size):
    keys = {"secure.group-size": size, "robust.f": -1}
    assert largest_group(Job.of({**GROUPED, **keys})) == 2 * size - 1
    many = {**keys, "round.min-nodes": size * size}
    assert largest_group(Job.of({**GROUPED, **many})) == size + 1


def test_a_run_with_fewer_is_refused_before_it_begins():
    for changes, least in ((SECAGG, 3), (DECRYPTOR, 4), ({}, 2)):
        job = Job.of(changes)
        _check_job(job, least)
        with pytest.raises(ConfigError, match=rf"nodes = 1: .*{least}"):
            _check_job(job, 1)
    with pytest.raises(ConfigError, match=r"secure\.min-cohort = 3 of them"):
        _check_job(Job.of(SECAGG), 2)
    with pytest.raises(ConfigError, match=r"round\.min-nodes = 5\. Use more"):
        _check_job(Job.of({**SECAGG, "round.min-nodes": 5}), 4)


def test_the_server_waits_for_as_many(tmp_path):
    few = {**SECAGG, "round.join-timeout": 0.5, "train.rounds": 1}
    with pytest.raises(RunError, match="needs 3 nodes and 2 are connected"):
        run(tmp_path, "few", few, nodes=2)
    assert run(tmp_path, "enough", few, nodes=3).ok
