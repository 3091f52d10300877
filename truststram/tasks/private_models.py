"""Which models can be trained with example-level privacy, found out without any data.

The guarantee of DP-SGD needs the gradient of an example to be that example's business
alone, and every trained weight to be seen by what computes it. Layers that are known to
break this are refused by name with their replacement. All others are tried: gradients
of three made-up examples, computed together, are compared with those of each example
alone. This finds layers that mix a batch, weights that are used without calling their
layer, and state that a batch leaves behind, in any model, and depends on no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from .example_gradients import BookKeeping, Hooks, Loss, formulas, trained

__all__ = ["check_layers", "example_gradients", "mode_of"]

_PROBES = 3
# Of an example's whole gradient; rounding in float32 stays far below.
_TOLERANCE = 1e-3
_MODES: dict[str, type[BookKeeping] | type[Hooks]] = {
    "book-keeping": BookKeeping,
    "hooks": Hooks,
}
# What Opacus and torch raise for layers that they cannot handle.
_FAILURES = (
    *(AssertionError, AttributeError, IndexError, KeyError),
    *(NotImplementedError, RuntimeError, TypeError, ValueError),
)
_NORM = "use GroupNorm(groups, channels) or LayerNorm"
_KNOWN = (
    "build it from Linear, Conv, Embedding, GroupNorm and LayerNorm, or freeze its "
    "parameters (requires_grad=False)"
)
_INSTANCE = nn.modules.instancenorm._InstanceNorm
# Type, what is wrong with it, what to use instead.
_REFUSED: tuple[tuple[type[nn.Module], str, str], ...] = (
    (nn.modules.batchnorm._BatchNorm, "mixes the examples of a batch", _NORM),
    (_INSTANCE, "keeps means of the data", "set track_running_stats=False"),
    (nn.LSTM, "hides its steps", "use opacus.layers.DPLSTM"),
    (nn.GRU, "hides its steps", "use opacus.layers.DPGRU"),
    (nn.RNN, "hides its steps", "use opacus.layers.DPRNN"),
    (
        nn.MultiheadAttention,
        "uses weights without calling their layers",
        "use opacus.layers.DPMultiheadAttention",
    ),
)


def check_layers(model: nn.Module) -> None:
    """Refuse layers that are known not to work, by name, with their replacement.

    Raises
    ------
    ConfigError
        For the first one, or if nothing is trained.
    """
    if not trained(model):
        raise ConfigError("dp-sgd: the model has no parameter that is trained.")
    for name, module in model.named_modules():
        for kind, why, instead in _REFUSED:
            harmless = isinstance(module, _INSTANCE) and not module.track_running_stats
            if isinstance(module, kind) and not harmless:
                raise _refused(name, module, why, instead)


def mode_of(model: nn.Module, like: torch.Tensor) -> str:
    """Return the fastest way to the gradients of single examples of a model.

    Parameters
    ----------
    model : Module
        In training mode. Its weights and gradients stay as they are.
    like : Tensor of shape (rows, ...)
        Examples, of which only shape and type are used: the result, and whether there
        is one, depends on no data.

    Returns
    -------
    str
        ``book-keeping`` or ``hooks``; see :mod:`.example_gradients`.

    Raises
    ------
    ConfigError
        If neither gives the gradients of single examples, with the layer's name; if
        there are weights that are not finite.
    """
    check_layers(model)
    if not all(p.isfinite().all() for p in model.parameters()):
        raise ConfigError("The model to train has weights that are not finite.")
    x = _made_up(like)
    wrong: ConfigError | None = None
    with _without_dropout(model):
        alone = _alone(model, x)
        for mode in _MODES:
            try:
                found = _compare(mode, model, x, alone)
            except _FAILURES as error:
                found = _failed(model, error)
            if found is None:
                return mode
            wrong = found
    assert wrong is not None
    raise wrong


@contextmanager
def example_gradients(
    model: nn.Module, loss: Loss, like: torch.Tensor
) -> Iterator[BookKeeping | Hooks]:
    """Give the function from a batch to its gradients; see :func:`mode_of`.

    ``loss`` is the sum of the losses of a batch, from scores and labels.
    """
    with _MODES[mode_of(model, like)](model, loss) as gradients:
        yield gradients


def _made_up(like: torch.Tensor) -> torch.Tensor:
    """Return examples between 0 and 1, which are valid as ids too."""
    rng = torch.Generator().manual_seed(1)
    x = torch.rand((_PROBES, *like.shape[1:]), generator=rng)
    if not like.is_floating_point():
        x = x.round()
    return x.to(like.device, like.dtype)


def _weighed(scores: torch.Tensor, _: object = None) -> torch.Tensor:
    """Return a loss whose gradient does not vanish where a model is sure."""
    flat = scores.flatten(1)
    return (flat * torch.linspace(1, 2, flat.shape[1], device=flat.device)).sum()


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch off what draws: the same example must give the same gradient twice."""
    kinds = (nn.modules.dropout._DropoutNd, nn.RReLU)
    drawing = [m for m in model.modules() if isinstance(m, kinds) and m.training]
    for module in drawing:
        module.training = False
    try:
        yield
    finally:
        for module in drawing:
            module.training = True


def _alone(model: nn.Module, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """Return each example's gradient, by parameter, from a batch of its own."""
    parameters, found = trained(model), []
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for one in torch.split(x, 1):
        loss = _weighed(model(one))
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = zip(parameters, grads, strict=True)
        found.append([torch.zeros_like(p) if g is None else g for p, g in pairs])
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, before[name]):
            buffer.copy_(before[name])
            layer, _, own = name.rpartition(".")
            why = f"changes its buffer {own!r} while it trains"
            raise _refused(layer, model.get_submodule(layer), why, _NORM)
    return found


def _compare(
    mode: str, model: nn.Module, x: torch.Tensor, alone: list[list[torch.Tensor]]
) -> ConfigError | None:
    """Return what is wrong with the gradients of a batch, if anything."""
    parameters = trained(model)
    with _MODES[mode](model, _weighed) as gradients:
        found = gradients(x, x)
    norms = found.norms()
    for place, own in enumerate(alone):
        only = torch.zeros(_PROBES, device=x.device)
        only[place] = 1
        total = found.total(only, parameters)
        parts = torch.split(total, [p.numel() for p in parameters])
        whole = torch.stack([g.norm() for g in own]).norm()
        room = _TOLERANCE * float(whole)
        for (name, _), part, right in zip(_named(model), parts, own, strict=True):
            if not float((part - right.reshape(-1)).norm()) <= room:
                return _not_alone(model, name, x)
        if not abs(float(norms[place] - whole)) <= room:
            return _not_alone(model, _named(model)[0][0], x)
    return None


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _not_alone(model: nn.Module, parameter: str, x: torch.Tensor) -> ConfigError:
    """Return the error for gradients of a batch that are not those of its examples."""
    alone = zip(*(_seen(model, one) for one in torch.split(x, 1)), strict=True)
    for (name, module, *batch), single in zip(_seen(model, x), alone, strict=True):
        own = [torch.cat(parts) for parts in zip(*(c[2:] for c in single), strict=True)]
        same = [
            torch.allclose(*pair, 1e-3, 1e-5) for pair in zip(batch, own, strict=True)
        ]
        if same == [True, False]:  # in, out
            why = "mixes the examples of a batch, or draws without nn.Dropout"
            return _refused(name, module, why, _NORM)
    name, _, own_name = parameter.rpartition(".")
    why = f"has its {own_name!r} used without calling the layer"
    return _refused(name, model.get_submodule(name), why, _KNOWN)


def _seen(model: nn.Module, x: torch.Tensor) -> list[Any]:
    """Return name, module, input and output of every call, in order of their ends."""
    calls: list[Any] = []

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if all(isinstance(t, torch.Tensor) for t in (*inputs[:1], output)):
            calls.append((name, module, inputs[0].clone(), output.clone()))

    named = model.named_modules()
    handles = [m.register_forward_hook(partial(note, name)) for name, m in named]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return calls


def _failed(model: nn.Module, error: Exception) -> ConfigError:
    """Return the error for a model that Opacus failed on."""
    known = formulas()
    names = [name.rpartition(".")[0] for name, _ in _named(model)]
    layers = [(name, model.get_submodule(name)) for name in names]
    unknown = [pair for pair in layers if type(pair[1]) not in known]
    name, module = (unknown or layers)[0]
    text = " ".join(str(error).split())[:120]
    why = f"has no gradients of single examples ({type(error).__name__}: {text})"
    return _refused(name, module, why, _KNOWN)


def _refused(name: str, module: nn.Module, why: str, instead: str) -> ConfigError:
    layer = f"layer {name!r} ({type(module).__name__})" if name else "the model"
    return ConfigError(f"privacy.mechanism = dp-sgd: {layer} {why}; {instead}.")
