"""Which sums of a model may follow each other, as a server remembers them."""

from __future__ import annotations

import json
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.told import Told

NAMES = "abcdefg"
some = st.sets(st.sampled_from(NAMES), min_size=1)


def named(members):
    return {name: f"node {name}" for name in members}


@given(st.lists(some, max_size=8))
def test_no_two_sums_of_a_model_overlap_unless_they_are_the_same(sets):
    told = Told()
    told.begin("m")
    for one in sets:
        if told.allows(one):
            told.add(named(one))
    for one, other in combinations(told.sets, 2):
        assert not set(one) & set(other)
    assert len(told.sets) == len({frozenset(one) for one in told.sets})
    for one in told.sets:
        assert told.allows(one)


@given(st.lists(some, max_size=3), some, some)
def test_who_is_asked_can_be_summed(sets, asked, connected):
    told = Told()
    told.begin("m")
    for one in sets:
        if told.allows(one):
            told.add(named(one))
    asked = [f"node {x}" for x in asked]
    connected = {f"node {x}" for x in connected} | set(asked)
    cohort = told.cohort(asked, connected)
    assert set(cohort) <= connected
    assert told.allows([name.removeprefix("node ") for name in cohort])
    if not told.sets:
        assert cohort == asked


def test_another_model_begins_anew():
    told = Told()
    told.begin("m")
    told.add(named("abc"))
    told.turn = 2
    told.begin("m")
    assert (len(told.sets), told.turn) == (1, 2)
    told.begin("n")
    assert (told.sets, told.turn) == ([], 0)


def test_what_a_server_cannot_know_of_its_first_model_it_does_not_claim():
    told = Told()
    assert not told.complete
    told.begin("m")
    assert not told.complete
    told.begin("n")
    assert told.complete
    told.begin("n")
    assert told.complete
    told.add(named("abc"))
    for model in ("n", "o"):  # resumed before, or after, the model changed
        again = Told.from_state(json.loads(json.dumps(told.state())))
        again.begin(model)
        assert not again.complete
        assert (again.sets == told.sets) == (model == "n")
