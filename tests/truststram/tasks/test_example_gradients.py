import math

import pytest
import torch
from opacus.grad_sample.utils import wrap_model
from torch import nn

from tests.truststram.tasks.private_networks import (
    MODELS,
    OTHERS,
    WAYS,
    Branching,
    Counting,
    Mixing,
    Uncalled,
    clipped,
    cnn,
    frozen,
    loss,
    made,
    oracle,
)
from truststram.errors import ConfigError
from truststram.tasks.dp_sgd import clip_factors
from truststram.tasks.example_gradients import trained
from truststram.tasks.private_models import example_gradients, mode_of

# Hooks of torch do not allow a layer behind that works in place, as in `cnn`.
TRIED = [(way, name) for way in WAYS for name in MODELS if name != "cnn"]
TRIED += [("book-keeping", "cnn"), *(("hooks", name) for name in OTHERS)]


@pytest.mark.parametrize(("way", "name"), TRIED)
def test_every_way_gives_the_gradients_of_a_loop(way, name):
    model, x, y = made(*(MODELS | OTHERS)[name])
    right = oracle(model, x, y)
    clip = float(right.norm(dim=1).median())
    with WAYS[way](model, loss) as gradients:
        for _ in range(2):  # nothing stays behind from one batch to the next
            found = gradients(x, y)
    torch.testing.assert_close(found.norms(), right.norm(dim=1))
    total = found.total(clip_factors(found, clip), trained(model))
    torch.testing.assert_close(total, clipped(right, clip), atol=1e-5, rtol=1e-4)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ew", "ghost"])
@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")
def test_all_modes_of_opacus_give_the_same_sum(mode):
    model, x, y = made(
        lambda: nn.Sequential(*(m for m in cnn() if type(m) is not nn.ReLU)), (1, 8, 8)
    )
    clip = float(oracle(model, x, y).norm(dim=1).median())
    with example_gradients(model, loss, x) as gradients:
        found = gradients(x, y)
    ours = found.total(clip_factors(found, clip), trained(model))
    wrapped = wrap_model(
        model,
        mode,
        loss_reduction="sum",
        **({"max_grad_norm": clip} if mode == "ghost" else {}),
    )
    each = nn.functional.cross_entropy(wrapped(x), y, reduction="none")
    each.sum().backward(retain_graph=True)
    if mode == "ghost":
        factors = wrapped.get_clipping_coef()
        for p in model.parameters():
            p.grad = None
        wrapped.disable_hooks()
        (factors * each).sum().backward()
        theirs = [p.grad for p in model.parameters()]
    else:
        samples = [p.grad_sample.flatten(1) for p in model.parameters()]
        norms = torch.cat(samples, 1).norm(dim=1)
        theirs = [(clip / norms).clamp(max=1) @ g for g in samples]
    flat = torch.cat([g.reshape(-1) for g in theirs])
    torch.testing.assert_close(ours, flat, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS | OTHERS)
def test_the_way_depends_on_the_layers_only(name):
    model, x, _ = made(*(MODELS | OTHERS)[name])
    expected = "book-keeping" if name in MODELS else "hooks"
    assert mode_of(model, x) == expected
    assert mode_of(model, torch.full_like(x, math.nan)) == expected


REFUSED = {
    r"'1' \(BatchNorm1d\) mixes.*GroupNorm": nn.BatchNorm1d(4),
    r"'1' \(BatchNorm1d\) mixes": nn.BatchNorm1d(4, affine=False),
    r"'1' \(InstanceNorm1d\).*track_running_stats=False": nn.InstanceNorm1d(
        4, track_running_stats=True
    ),
    r"'1' \(LSTM\).*DPLSTM": nn.LSTM(4, 4),
    r"'1' \(MultiheadAttention\).*DPMultiheadAttention": nn.MultiheadAttention(4, 2),
    r"'1' \(Counting\) changes its buffer 'seen'": Counting(),
    r"'1.layer' \(Linear\) has its 'weight' used without calling": Uncalled(),
    r"'1' \(Mixing\) mixes.*GroupNorm": Mixing(),
    r"'1' \(Branching\).*build it from Linear": Branching(),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_layer_that_cannot_be_handled_is_named_with_its_replacement(message):
    model = nn.Sequential(nn.Linear(4, 4), REFUSED[message])
    with pytest.raises(ConfigError, match=message):
        mode_of(model.train(), torch.ones(2, 4))


def test_a_model_that_is_sure_is_no_reason_to_refuse():
    model, x, _ = made(cnn, (1, 8, 8))
    with torch.no_grad():
        model[-1].weight.mul_(1e4)
    assert mode_of(model, x) == "book-keeping"


def test_weights_that_are_not_finite_are_refused():
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.bias[0] = math.nan
    with pytest.raises(ConfigError, match="not finite"):
        mode_of(model, torch.ones(2, 4))


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(ConfigError, match="no parameter"):
        mode_of(frozen(nn.Linear(4, 4)), torch.ones(2, 4))
