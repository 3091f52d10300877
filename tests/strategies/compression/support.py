"""A task whose updates are worth compressing and that trains in milliseconds."""

from __future__ import annotations

import numpy as np
import torch

from tests.support.task import TinyTask
from truststram.rng import derive
from truststram.tasks.torch_task import Examples, seeded_model

FEATURES, CLASSES = 400, 4


class WideTask(TinyTask):
    """Four classes in 400 dimensions, 30 of which matter; 1,604 parameters."""

    def model(self, job, seed):
        return seeded_model(lambda: torch.nn.Linear(FEATURES, CLASSES), seed)

    def _rows(self, label: object, n: int) -> Examples:
        rng = derive(7, "rows", str(label))
        centres = derive(7, "centres").normal(size=(CLASSES, FEATURES))
        centres[:, 30:] = 0
        y = rng.integers(0, CLASSES, n)
        x = 0.4 * centres[y] + 0.7 * rng.normal(size=(n, FEATURES))
        return Examples(torch.tensor(x.astype(np.float32)), torch.tensor(y))
