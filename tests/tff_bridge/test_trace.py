"""What a model is made of is written down, or what stands against it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from tff_bridge.trace import trace
from truststram.errors import ConfigError

from .models import MODELS, Frozen, Mlp


def refused(model, x) -> str:
    with pytest.raises(ConfigError) as error:
        trace(model, x)
    return str(error.value)


def function(forward):
    """Return a module with a linear layer and this forward."""

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return forward(self.linear(x))

    return Module()


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_weights_have_torchs_names_order_and_values(kind):
    model = kind()
    traced = trace(model, kind.example[:2], allow_frozen_bn=True)
    expected = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert list(traced.weights) == [name for name, _ in expected]
    for name, parameter in expected:
        np.testing.assert_array_equal(traced.weights[name], parameter.detach().numpy())
    assert [key for _, key, _ in traced.graph["parameters"]] == list(traced.weights)
    assert json.loads(json.dumps(traced.graph)) == traced.graph
    assert traced.graph["input"]["shape"] == [None, *kind.example.shape[1:]]


def test_buffers_and_frozen_parameters_are_constants():
    traced = trace(Frozen(), Frozen.example[:2], allow_frozen_bn=True)
    assert set(traced.constants) == {
        *("norm.running_mean", "norm.running_var", "fixed.weight", "fixed.bias"),
    }


def test_tracing_leaves_the_model_alone():
    model = Mlp().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    traced = trace(model, Mlp.example[:2])
    traced.weights["0.weight"][:] = 7
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_all_unsupported_operators_are_named_with_their_places():
    model = nn.Sequential(nn.Linear(4, 4), nn.Mish(), nn.Hardswish())
    told = refused(model, torch.zeros(2, 4))
    assert "aten.mish.default in 1 (Mish)" in told
    assert "aten.hardswish.default in 2 (Hardswish)" in told


def test_batch_normalisation_is_refused_with_the_consequence():
    told = refused(Frozen(), Frozen.example[:2])
    assert "norm" in told
    assert "running statistics" in told
    assert "GroupNorm" in told
    assert "allow-frozen-bn" in told


def test_what_torch_cannot_export_is_told_in_one_line():
    told = refused(function(lambda h: h if h.sum() > 0 else -h), torch.zeros(2, 4))
    assert told.startswith("torch.export cannot capture the model")
    assert "\n" not in told


def test_changes_in_place_that_others_see_are_refused():
    def seen(h):
        part = h[:, 0]
        h.add_(1)
        return h + part[:, None]

    def through_a_view(h):
        h.view(-1).add_(1)
        return h

    def unseen(h):
        return (h * 2).add_(1).relu_()

    x = torch.zeros(2, 4)
    assert "in place" in refused(function(seen), x)
    assert "in place" in refused(function(through_a_view), x)
    assert trace(function(unseen), x).weights


def test_parameters_of_other_types_or_shared_ones_are_refused():
    assert "float64" in refused(nn.Linear(4, 4).double(), torch.zeros(2, 4).double())
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert "shares" in refused(tied, torch.zeros(2, 4))
