"""What the tests of benchmarks share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def one_thread():
    """Small products are slower on many threads, above all if others want them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
