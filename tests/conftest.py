"""Shared test set-up: hypothesis profiles, a quiet Flower log, message builders."""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from truststram._flower import become_task

# "ci" is repeatable; "deep" is for `make test-all`.
settings.register_profile(
    "ci",
    derandomize=True,
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("deep", parent=settings.get_profile("ci"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


_TESTS = itertools.count()


@pytest.fixture(autouse=True)
def _flower_process():
    """Give this process the identity that Message needs; silence Flower's log."""
    become_task(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _no_picture(request, monkeypatch):
    """Drawing takes longer than a small run: only tests marked ``picture`` draw."""
    if "picture" not in request.keywords:
        monkeypatch.setattr("server_app.main.curves", lambda result: result.dir)


@pytest.fixture(autouse=True)
def _state(monkeypatch, tmp_path_factory):
    """Nodes remember things in the user's folder: another one for every test."""
    folder = tmp_path_factory.getbasetemp() / "state" / str(next(_TESTS))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))  # made by whoever writes to it


@pytest.fixture
def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parent.parent
