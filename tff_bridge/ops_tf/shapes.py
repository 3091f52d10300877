"""Operators that move values around: views, permutations, joins, parts."""

from __future__ import annotations

import math
from typing import Any

from .table import Operators, UnsupportedOperator, static

__all__ = ["OPERATORS"]


def _same(run: Any, x: Any, **unused: Any) -> Any:
    return x


def _size(run: Any, x: Any, dim: int) -> Any:
    known = static(x)[dim]
    return run.tf.shape(x)[dim] if known is None else known


def _sizes(run: Any, x: Any) -> list[Any]:
    return [_size(run, x, dim) for dim in range(len(x.shape))]


def _reshape(run: Any, x: Any, size: list[Any] | None = None, shape: Any = None) -> Any:
    """Reshape; of the sizes one may be -1 and some may be computed."""
    sizes = size if size is not None else shape
    return run.tf.reshape(x, sizes)


def _flatten(run: Any, x: Any, start_dim: int, end_dim: int) -> Any:
    rank, sizes = len(x.shape), _sizes(run, x)
    start, end = start_dim % rank, end_dim % rank
    merged = sizes[start : end + 1]
    known = all(isinstance(n, int) for n in merged)
    return run.tf.reshape(
        x, [*sizes[:start], math.prod(merged) if known else -1, *sizes[end + 1 :]]
    )


def _unflatten(run: Any, x: Any, dim: int, sizes: list[int]) -> Any:
    dim, old = dim % len(x.shape), _sizes(run, x)
    return run.tf.reshape(x, [*old[:dim], *sizes, *old[dim + 1 :]])


def _transpose(run: Any, x: Any, dim0: int, dim1: int) -> Any:
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return run.tf.transpose(x, order)


def _permute(run: Any, x: Any, dims: list[int]) -> Any:
    return run.tf.transpose(x, [d % len(dims) for d in dims])


def _swap(run: Any, x: Any) -> Any:
    return run.tf.transpose(x)


def _unsqueeze(run: Any, x: Any, dim: int) -> Any:
    return run.tf.expand_dims(x, dim)


def _squeeze(run: Any, x: Any, dim: Any) -> Any:
    dims = dim if isinstance(dim, list) else [dim]
    sizes = static(x)
    if any(sizes[d] is None for d in dims):
        raise UnsupportedOperator("squeezes the batch")
    # torch leaves a size other than 1 alone.
    ones = [d for d in dims if sizes[d] == 1]
    return run.tf.squeeze(x, axis=ones) if ones else x


def _select(run: Any, x: Any, dim: int, index: int) -> Any:
    return run.tf.gather(x, _from_start(run, x, dim, index), axis=dim)


def _from_start(run: Any, x: Any, dim: int, index: int) -> Any:
    return index if index >= 0 else _size(run, x, dim) + index


def _slice(
    run: Any, x: Any, dim: int, start: int | None, end: int | None, step: int
) -> Any:
    parts: list[Any] = [slice(None)] * len(x.shape)
    # torch writes "to the end" as the largest integer.
    to_end = isinstance(end, int) and end >= 2**31 - 1
    parts[dim % len(parts)] = slice(start, None if to_end else end, step)
    return x[tuple(parts)]


def _cat(run: Any, tensors: list[Any], dim: int) -> Any:
    return run.tf.concat(tensors, axis=dim)


def _stack(run: Any, tensors: list[Any], dim: int) -> Any:
    return run.tf.stack(tensors, axis=dim)


def _chunk(run: Any, x: Any, chunks: int, dim: int) -> Any:
    size = static(x)[dim]
    if size is None:
        raise UnsupportedOperator("splits the batch")
    each = -(-size // chunks)
    return _split(run, x, each, dim)


def _split(run: Any, x: Any, split_size: Any, dim: int) -> Any:
    size = static(x)[dim]
    if size is None:
        raise UnsupportedOperator("splits the batch")
    starts = range(0, size, split_size)
    return run.tf.split(x, [min(split_size, size - s) for s in starts], axis=dim)


def _split_sizes(run: Any, x: Any, split_sizes: list[int], dim: int) -> Any:
    return run.tf.split(x, split_sizes, axis=dim)


def _expand(run: Any, x: Any, size: list[Any], implicit: bool = False) -> Any:
    old = [1] * (len(size) - len(x.shape)) + _sizes(run, x)
    sizes = [o if n == -1 else n for n, o in zip(size, old, strict=True)]
    return run.tf.broadcast_to(x, sizes)


def _getitem(run: Any, x: Any, index: int) -> Any:
    return x[index]


OPERATORS: Operators = {
    **{
        f"aten.{name}.default": _same
        for name in ("contiguous", "clone", "detach", "alias", "lift_fresh_copy")
    },
    "aten.sym_size.int": _size,
    "aten.view.default": _reshape,
    "aten.reshape.default": _reshape,
    "aten._unsafe_view.default": _reshape,
    "aten.flatten.using_ints": _flatten,
    "aten.unflatten.int": _unflatten,
    "aten.transpose.int": _transpose,
    "aten.permute.default": _permute,
    "aten.t.default": _swap,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.squeeze.dim": _squeeze,
    "aten.squeeze.dims": _squeeze,
    "aten.select.int": _select,
    "aten.slice.Tensor": _slice,
    "aten.cat.default": _cat,
    "aten.stack.default": _stack,
    "aten.chunk.default": _chunk,
    "aten.split.Tensor": _split,
    "aten.split_with_sizes.default": _split_sizes,
    "aten.expand.default": _expand,
    "python.getitem": _getitem,
}
