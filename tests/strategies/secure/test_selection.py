"""Selective encryption: what is named is sealed, and all else stays in clear."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.secure.selection import Selection
from tests.support.federation import model
from truststram.errors import ConfigError
from truststram.records import Spec

SPEC = Spec.of(model(0.0, {"a.w": (2, 3), "a.b": (3,), "c.w": (4,)}))


@pytest.mark.parametrize(
    ("patterns", "clear"),
    [
        ("", ()),
        ("*", ()),
        ("a.*", ("c.w",)),
        ("*.w", ("a.b",)),
        ("a.w, c.*", ("a.b",)),
        ("a.b", ("a.w", "c.w")),
    ],
)
def test_patterns_name_arrays(patterns, clear):
    selection = Selection.of(SPEC, patterns)
    assert selection.names == clear
    update = np.arange(13, dtype=np.float32)
    sealed, rest = selection.split(update)
    assert (len(rest), len(sealed)) == (selection.clear_size, 13 - len(rest))
    assert sorted([*sealed, *rest]) == list(range(13))
    out = np.empty(13, np.float32)
    selection.join(sealed, rest, out)
    np.testing.assert_array_equal(out, update)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"fc\* matches no array .* a\.w, a\.b, c\.w"):
        Selection.of(SPEC, "a.*,fc*")
