"""Where the numbers of nodes, of a sum and of a quorum stop to go together."""

from __future__ import annotations

import itertools
import math

import pytest

from strategies import stack
from strategies.secure.graph import threshold
from strategies.secure.groups import Groups
from strategies.secure.refusals import _leaves_too_few_groups
from truststram.errors import ConfigError
from truststram.job import Job

BFV = {"secure.scheme": "bfv"}
SECAGG = {"secure.scheme": "secagg"}
MALICIOUS = {**SECAGG, "secure.threat": "malicious"}
DECRYPTOR = {**BFV, "secure.key-holder": "decryptor"}
GROUPED = {**BFV, "secure.group-size": 4, "robust.rule": "median", "robust.f": -1}


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (SECAGG, None),  # round.min-nodes by default: says nothing
        ({**SECAGG, "round.min-nodes": 3}, None),
        ({**SECAGG, "round.min-nodes": 9, "secure.min-cohort": 10}, "of so few nodes"),
        ({**SECAGG, "round.min-nodes": 10, "secure.min-cohort": 10}, None),
        ({**BFV, "round.min-nodes": 10, "round.fraction": 0.2}, "of so few nodes"),
        ({**BFV, "round.min-nodes": 10, "round.fraction": 0.3}, None),
        ({**DECRYPTOR, "round.min-nodes": 3}, "of so few nodes"),
        ({**DECRYPTOR, "round.min-nodes": 4}, None),
        ({**BFV, "round.min-nodes": 11, "secure.max-cohort": 10}, "a sum can have"),
        ({**BFV, "round.min-nodes": 10, "secure.max-cohort": 10}, None),
        ({**DECRYPTOR, "round.min-nodes": 11, "secure.max-cohort": 10}, None),
        ({**GROUPED, "secure.max-cohort": 3}, "a sum can have"),
        ({**GROUPED, "round.min-nodes": 8, "secure.max-cohort": 4}, None),
        # 7 nodes make one group of 7.
        ({**GROUPED, "round.min-nodes": 7, "secure.max-cohort": 6}, "a sum can have"),
        ({**GROUPED, "round.min-nodes": 12, "secure.max-cohort": 4}, None),
        ({**SECAGG, "round.quorum": 0.49}, "could not open"),
        ({**SECAGG, "round.quorum": 0.5}, None),
        ({**MALICIOUS, "round.quorum": 0.66}, "could not open"),
        ({**MALICIOUS, "round.quorum": 0.67}, None),
        ({**BFV, "round.quorum": 0.3}, None),
        ({**BFV, "round.quorum": 0.3, "round.min-nodes": 6}, "could not open"),
        ({**BFV, "round.quorum": 0.3, "round.min-nodes": 9}, None),
        ({**GROUPED, "round.min-nodes": 12, "round.quorum": 0.5}, "few whole groups"),
        ({**GROUPED, "round.min-nodes": 12, "round.quorum": 0.51}, None),
        ({**BFV, "run.checkpoint-every": 1}, None),
        ({"run.checkpoint-every": 2, "round.quorum": 0.1}, None),
    ],
)
def test_jobs_whose_rounds_would_all_fail_are_refused_and_no_others(job, reason):
    made = Job.of(job)
    if reason is None:
        stack.check(made)
        return
    with pytest.raises(ConfigError, match=reason):
        stack.check(made)


def whole_at_worst(replies, sizes, needed):
    """Return how few groups can have what they need: tries all ways to reply."""
    ways = itertools.product(*(range(size + 1) for size in sizes))
    return min(sum(n >= needed for n in way) for way in ways if sum(way) == replies)


@pytest.mark.parametrize("scheme", [BFV, SECAGG, MALICIOUS])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("nodes", [9, 10, 11, 14, 15])
def test_a_quorum_leaves_more_whole_groups_than_twice_f(scheme, size, nodes):
    sizes = [len(x) for x in Groups.of(list(map(str, range(nodes))), size, "").members]
    threat = Job.of(scheme).secure.threat
    needed = 3
    if scheme != BFV:
        needed = max(3, threshold(max(sizes), threat))
    for replies, f in itertools.product(range(1, nodes + 1), (-1, 0, 1)):
        if len(sizes) <= 2 * f:
            continue  # refused as such
        keys = {"secure.group-size": size, "robust.rule": "median", "robust.f": f}
        quorum = {"round.quorum": replies / nodes, "round.min-nodes": nodes}
        job = Job.of({**scheme, **keys, **quorum})
        asked = math.ceil(replies / nodes * nodes)  # of floats
        enough = whole_at_worst(asked, sizes, needed) > 2 * max(f, 0)
        assert _leaves_too_few_groups(job) == (not enough)


@pytest.mark.parametrize(
    ("job", "least", "below"), [(SECAGG, 0.5, 0.49), (MALICIOUS, 0.667, 0.666)]
)
def test_an_accepted_quorum_leaves_as_many_as_open_a_sum(job, least, below):
    def opens(quorum):
        threat = Job.of(job).secure.threat
        return [math.ceil(quorum * n) >= threshold(n, threat) for n in range(3, 500)]

    stack.check(Job.of({**job, "round.quorum": least}))
    assert all(opens(least))
    with pytest.raises(ConfigError, match="could not open"):
        stack.check(Job.of({**job, "round.quorum": below}))
    assert not all(opens(below))
