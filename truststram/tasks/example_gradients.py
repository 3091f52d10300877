"""Gradients of single examples: their norms, and sums of them with a weight for each.

Source: Bu, Wang, Zha, Karypis, "Differentially Private Optimization on Large Model at
Small Cost", ICML 2023 (book-keeping), with the layer formulas of Opacus (Yousefpour et
al., arXiv 2109.12298). Differences: the choice is made once for each model, by trying
it on made-up examples, and what is summed is what the norms were taken of.

Mathematics
-----------
One backward pass gives the gradient b of the summed loss at every layer's output, with
a row for each example i. With the layer's input a, the gradient of a linear layer's
weights is ``b_i a_i^T``: its norm is ``|b_i| |a_i|``, and the sum with weights c_i is
the matrix product ``(c b)^T a``; no example's gradient is ever formed. Other layers
(convolutions, norms, embeddings, linear layers on sequences) have few weights for their
work: theirs are formed. Since gradients of weights are not computed in the backward
pass, all this costs little more than plain training.

Which way
---------
``book-keeping`` if every trained parameter belongs to a layer that Opacus has a formula
for; otherwise ``hooks``, Opacus' own module hooks, which differentiate unknown layers
once more with ``torch.func``. On CPUs book-keeping was faster than hooks, expanded
weights, ghost clipping and functorch on every network tried (``benchmarks/dp_sgd.py``).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["BookKeeping", "Gradients", "Hooks", "Loss", "formulas", "trained"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Parameters = Sequence[nn.Parameter]


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training moves, each once."""
    return [p for p in model.parameters() if p.requires_grad]


@dataclass
class Gradients:
    """The gradients of a batch, example by example.

    Attributes
    ----------
    rows : int
        Examples in the batch, B.
    formed : dict of parameter to Tensor of shape (B, values of the parameter)
    outer : list of (Linear, Tensor of shape (B, inputs), Tensor of shape (B, outputs))
        Layers of which the gradients are the outer products of these.
    """

    rows: int
    formed: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    outer: list[tuple[nn.Linear, torch.Tensor, torch.Tensor]] = field(
        default_factory=list
    )

    def norms(self) -> torch.Tensor:
        """Return the L2 norm of each example's whole gradient, shape (B,)."""
        formed = self.formed.values()
        squares = [torch.linalg.vector_norm(g, dim=1).double().square() for g in formed]
        for layer, a, b in self.outer:  # tiny times huge: only float64 holds both
            inputs = a.double().square().sum(1) if layer.weight.requires_grad else 0.0
            biased = layer.bias is not None and layer.bias.requires_grad
            squares.append(b.double().square().sum(1) * (inputs + float(biased)))
        if not squares:
            return torch.zeros(self.rows)
        return torch.stack(squares).sum(0).sqrt().float()

    def forget(self, rows: torch.Tensor) -> None:
        """Set the gradients of some examples to zero; rows has shape (B,), bool."""
        for values in self.formed.values():
            values[rows] = 0
        for place, (layer, a, b) in enumerate(self.outer):
            kept = ~rows[:, None]
            self.outer[place] = layer, a.where(kept, 0), b.where(kept, 0)

    def total(self, weights: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        """Return the sum of ``weights[i]`` times the gradient of example i.

        Parameters
        ----------
        weights : Tensor of shape (B,)
        parameters : sequence of d values together

        Returns
        -------
        Tensor of shape (d,)
            Zero where a parameter took no part.
        """
        sums: dict[torch.Tensor, torch.Tensor] = {
            p: weights.to(g.dtype) @ g for p, g in self.formed.items()
        }
        for layer, a, b in self.outer:
            if layer.weight.requires_grad:
                sums[layer.weight] = (weights.to(b.dtype)[:, None] * b).T @ a
            if layer.bias is not None and layer.bias.requires_grad:
                sums[layer.bias] = weights.to(b.dtype) @ b
        parts = [sums[p] if p in sums else torch.zeros_like(p) for p in parameters]
        return torch.cat([part.reshape(-1) for part in parts])

    def formed_values(self) -> int:
        """Return how many values are formed for one example: what memory it takes."""
        return sum(g.shape[1] for g in self.formed.values())


class BookKeeping:
    """One backward pass to the outputs of all layers that have trained parameters.

    Use as a context manager: its hooks are on the model until the end.

    Parameters
    ----------
    model : Module
    loss : callable
        Sum of the losses of a batch, from scores and labels.

    Raises
    ------
    NotImplementedError
        If a trained parameter belongs to a layer without a formula; the message is the
        name of the parameter.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._model, self._loss, self._formulas = model, loss, formulas()
        for name, module in model.named_modules():
            own = module.named_parameters(name, recurse=False)
            wanted = [label for label, p in own if p.requires_grad]
            if wanted and type(module) not in self._formulas:
                raise NotImplementedError(wanted[0])
        self._calls: list[Any] = []  # layer, input, edge of the output
        self._handles: list[Any] = []

    def __enter__(self) -> BookKeeping:
        for module in self._model.modules():
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                self._handles.append(module.register_forward_hook(self._called))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._calls = [], []

    def _called(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        # The edge, not the tensor: a layer behind may write into the tensor.
        edge = torch.autograd.graph.get_gradient_edge(output)
        self._calls.append((module, inputs[0].detach(), edge))

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> Gradients:
        """Return the gradients of each example's loss; x and y have B rows."""
        self._calls = []
        loss = self._loss(self._model(x), y)
        calls, self._calls = self._calls, []
        edges = [edge for _, _, edge in calls]
        # None for what the loss does not depend on.
        found: Sequence[Any] = torch.autograd.grad(loss, edges, allow_unused=True)
        # A layer that is called twice, or shares a parameter, adds up its gradients
        # before their norm is taken: they have to be formed.
        uses = Counter(
            p for module, _, _ in calls for p in module.parameters(recurse=False)
        )
        gradients = Gradients(len(x))
        for (module, a, _), b in zip(calls, found, strict=True):
            if b is None:
                continue
            once = all(uses[p] == 1 for p in module.parameters(recurse=False))
            if isinstance(module, nn.Linear) and b.dim() == 2 and once:
                gradients.outer.append((module, a, b))
            else:
                _add(gradients, self._formulas[type(module)](module, [a], b))
        return gradients


class Hooks:
    """Opacus' module hooks, for models with layers of other kinds.

    As :class:`BookKeeping`.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._model, self._loss = model, loss
        self._hooks: Any = None

    def __enter__(self) -> Hooks:
        from opacus.grad_sample import GradSampleHooks

        # Opacus uses gradients of outputs only, which this warning is not about.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        # Whether it can handle the model is tried out, not asked.
        self._hooks = GradSampleHooks(self._model, loss_reduction="sum", strict=False)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.cleanup()
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):
                if hasattr(module, name):
                    delattr(module, name)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> Gradients:
        """Return the gradients of each example's loss; x and y have B rows."""
        loss = self._loss(self._model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        gradients = Gradients(len(x))
        for p in trained(self._model):
            taken: Any = p
            if taken.grad_sample is not None:
                _add(gradients, {p: taken.grad_sample})
            taken.grad_sample = p.grad = None
        return gradients


def _add(gradients: Gradients, samples: dict[nn.Parameter, torch.Tensor]) -> None:
    """Add formed gradients of trained parameters."""
    for p, sample in samples.items():
        if p.requires_grad:
            flat = sample.reshape(gradients.rows, -1)
            before = gradients.formed.get(p)
            gradients.formed[p] = flat if before is None else before + flat


def formulas() -> dict[type[nn.Module], Callable[..., Any]]:
    """Return Opacus' gradient of each example, by type of layer."""
    from opacus.grad_sample import GradSampleHooks
    from opacus.layers.dp_rnn import RNNLinear

    found = dict(GradSampleHooks.GRAD_SAMPLERS)
    # Called once for every step of a sequence, with as many rows as are that long.
    found.pop(RNNLinear, None)
    return found
