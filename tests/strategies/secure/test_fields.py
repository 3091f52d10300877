"""Lists of byte strings are taken apart as they were joined, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.secure.fields import join, split
from truststram.errors import ProtocolError

LISTS = st.lists(st.binary(max_size=20), max_size=5)


@given(LISTS)
def test_what_was_joined_is_split(parts):
    assert split(join(parts), len(parts)) == parts


@given(LISTS, LISTS)
def test_different_lists_are_different_bytes(one, two):
    assert (join(one) == join(two)) == (one == two)


@given(st.binary(max_size=60))
def test_other_bytes_are_refused(body):
    try:
        parts = split(body, 5)
    except ProtocolError:
        return
    assert join(parts) == body


@pytest.mark.parametrize("body", [b"\0", b"\xff\xff\xff\xff1", join([b""] * 6)])
def test_lengths_that_lie_and_lists_that_are_too_long(body):
    with pytest.raises(ProtocolError, match="fields"):
        split(body, 5)


@given(LISTS, st.integers(0, 6))
def test_lists_that_are_too_short(parts, least):
    if len(parts) >= least:
        assert split(join(parts), 5, least) == parts
    else:
        with pytest.raises(ProtocolError, match="fewer"):
            split(join(parts), 5, least)
