"""Pooling of NCHW images."""

from __future__ import annotations

from typing import Any

from .table import Operators, UnsupportedOperator, only, pair, static

__all__ = ["OPERATORS"]


def _max_pool2d(
    run: Any,
    x: Any,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Any:
    only(dilation=(pair(dilation), (1, 1)), ceil_mode=(ceil_mode, False))
    tf, (high, wide) = run.tf, pair(padding)
    nhwc = tf.transpose(x, [0, 2, 3, 1])
    if high or wide:
        edges = [[0, 0], [high, high], [wide, wide], [0, 0]]
        # Never the largest: torch pads with minus infinity.
        nhwc = tf.pad(nhwc, edges, constant_values=x.dtype.min)
    out = tf.nn.max_pool2d(
        nhwc, pair(kernel_size), pair(stride or kernel_size), padding="VALID"
    )
    return tf.transpose(out, [0, 3, 1, 2])


def _avg_pool2d(
    run: Any,
    x: Any,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    tf, (high, wide) = run.tf, pair(padding)
    only(ceil_mode=(ceil_mode, False), divisor_override=(divisor_override, None))
    if high or wide:
        only(count_include_pad=(count_include_pad, True))
    nhwc = tf.transpose(x, [0, 2, 3, 1])
    nhwc = tf.pad(nhwc, [[0, 0], [high, high], [wide, wide], [0, 0]])
    out = tf.nn.avg_pool2d(
        nhwc, pair(kernel_size), pair(stride or kernel_size), padding="VALID"
    )
    return tf.transpose(out, [0, 3, 1, 2])


def _adaptive_avg_pool2d(run: Any, x: Any, output_size: list[int]) -> Any:
    """Pool to a given size; each output covers the same number of inputs, or all."""
    sizes, wanted = static(x)[2:], pair(output_size)
    if wanted == (1, 1):
        return run.tf.reduce_mean(x, axis=[2, 3], keepdims=True)
    if None in sizes or any(
        n is None or n % w for n, w in zip(sizes, wanted, strict=True)
    ):
        raise UnsupportedOperator(f"{sizes} pixels to {list(wanted)}, not a multiple")
    kernel = [(n or 0) // w for n, w in zip(sizes, wanted, strict=True)]
    return _avg_pool2d(run, x, kernel, kernel, [0, 0], False, True, None)


OPERATORS: Operators = {
    "aten.max_pool2d.default": _max_pool2d,
    "aten.avg_pool2d.default": _avg_pool2d,
    "aten.adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
}
