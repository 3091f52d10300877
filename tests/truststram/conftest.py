"""What the tests of runs share."""

from __future__ import annotations

import pytest


@pytest.fixture
def undrawn(monkeypatch):
    """Runs of this test draw nothing, to save the time; test_plots.py draws."""
    monkeypatch.setattr(
        "truststram.plots.curves", lambda run: (run.dir / "curves.png").touch()
    )
