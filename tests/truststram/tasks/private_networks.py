"""Small networks of every kind, and their gradients example by example."""

import torch
from opacus.layers import DPLSTM
from torch import nn

from truststram.job import Job
from truststram.tasks.example_gradients import BookKeeping, Hooks, trained
from truststram.tasks.torch_task import seeded_model

WAYS = {"book-keeping": BookKeeping, "hooks": Hooks}


def loss(scores, y):
    return nn.functional.cross_entropy(scores, y, reduction="sum")


def private(**keys):
    plain = {
        "privacy.mechanism": "dp-sgd",
        "privacy.unit": "example",
        "privacy.insecure": True,
    }
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}
    return Job.of(plain | named)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Scale(nn.Module):
    """Parameters of its own, which Opacus has no formula for."""

    def __init__(self, size):
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x):
        return x * self.factor


class Twice(nn.Module):
    """One layer called twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = DPLSTM(4, 5, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


class Uncalled(nn.Module):
    """Uses a layer's weights once with and once without calling it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(self.layer(x), self.layer.weight)


class Mixing(nn.Module):
    """Normalises over the batch, by hand."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Counting(nn.Module):
    """Keeps something of what it saw."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += x.detach().sum()
        return x


class Branching(nn.Module):
    """Parameters of its own, and a choice by the data."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.factor if x.sum() > 0 else x


def frozen(module):
    for p in module.parameters():
        p.requires_grad_(False)
    return module


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.GroupNorm(2, 4),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.Tanh(),
        nn.Linear(5, 3, bias=False),
    )


MODELS = {
    "cnn": (cnn, (1, 8, 8)),
    "linear on a sequence": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Flatten()),
        (3, 4),
    ),
    "embedding": (
        lambda: nn.Sequential(
            Lambda(torch.Tensor.long), nn.Embedding(4, 3), nn.Flatten()
        ),
        (5,),
    ),
    "one layer twice": (Twice, (4,)),
    "partly frozen": (
        lambda: nn.Sequential(nn.Linear(4, 4), frozen(nn.Linear(4, 4)), Twice()),
        (4,),
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten()), (2, 6)),
}
# For Opacus' hooks alone.
OTHERS = {
    "own parameters": (lambda: nn.Sequential(nn.Linear(4, 4), Scale(4)), (4,)),
    "recurrent": (Recurrent, (3, 4)),
}


def made(factory, shape, rows=7, seed=3):
    model = seeded_model(factory, 1).train()
    rng = torch.Generator().manual_seed(seed)
    x = 3 * torch.rand((rows, *shape), generator=rng)
    return model, x, torch.randint(3, (rows,), generator=rng)


def oracle(model, x, y):
    """Gradients from a loop over batches of one, shape (rows, d)."""
    rows = []
    for one, label in zip(x.split(1), y.split(1), strict=True):
        g = torch.autograd.grad(loss(model(one), label), trained(model))
        rows.append(torch.cat([part.reshape(-1) for part in g]))
    return torch.stack(rows)


def clipped(rows, clip):
    return (rows * (clip / rows.norm(dim=1)).clamp(max=1)[:, None]).sum(0)
