"""Who is drawn: as the account says, and nobody else."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from strategies.accounting.sampling import EVERYONE, Sampling
from strategies.mechanisms.cohort import check_population, drawn, subset
from strategies.mechanisms.csprng import Source
from truststram.errors import RunError

from .checks import LEVEL


def uniform(counts):
    """Whether counts of equally likely outcomes are what chance makes of them."""
    return stats.chisquare(counts).pvalue > LEVEL


@pytest.mark.parametrize(("n", "m"), [(5, 2), (6, 3), (5, 1)])
def test_every_set_of_a_fixed_size_is_equally_likely(n, m):
    source = Source.insecure(3)
    sets = dict.fromkeys(combinations(range(n), m), 0)
    for _ in range(200 * len(sets)):
        found = subset(n, m, source)
        sets[tuple(found)] += 1
    counts = list(sets.values())
    assert uniform(counts)
    counts[0] *= 2  # the test sees a set that is twice as likely
    assert not uniform(counts)


def test_words_that_repeat_are_drawn_again():
    words = iter([np.array([7, 7, 1], np.uint64), np.array([5, 3, 9], np.uint64)])

    class Repeating(Source):
        def words(self, n):
            return next(words)

    assert subset(3, 1, Repeating()) == [1]


def test_a_fixed_sample_has_its_size_and_keeps_the_order():
    nodes, source = [f"n{i}" for i in range(40)], Source.insecure(1)
    seen = [drawn(nodes, Sampling("fixed", 0.25, 40), source) for _ in range(20)]
    assert {len(found) for found in seen} == {10}
    assert all(sorted(found, key=nodes.index) == found for found in seen)
    assert len({tuple(found) for found in seen}) == 20


def test_a_poisson_sample_has_a_random_size_and_everyone_is_everyone():
    nodes, source = list(range(400)), Source.insecure(1)
    sizes = [len(drawn(nodes, Sampling("poisson", 0.3), source)) for _ in range(50)]
    assert stats.ttest_1samp(sizes, 120).pvalue > LEVEL
    assert 4 < np.std(sizes) < 16  # the root of 400 * 0.3 * 0.7 is 9.2
    assert drawn(nodes, EVERYONE, source) == nodes


@pytest.mark.parametrize("now", [39, 41, 0])
def test_another_number_of_nodes_stops_a_fixed_sample(now):
    check_population(40, 40)
    with pytest.raises(RunError, match=f"{now} nodes are connected where .* with 40"):
        check_population(40, now)
