"""Linear layers, convolutions and normalisations.

Convolutions pad explicitly and then run without padding: TensorFlow's ``SAME`` pads
asymmetrically where a stride is larger than one, torch never does.
"""

from __future__ import annotations

from typing import Any

from .table import Operators, UnsupportedOperator, pair, static

__all__ = ["OPERATORS"]


def _linear(run: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    tf = run.tf
    if len(x.shape) == 2:
        out = tf.matmul(x, weight, transpose_b=True)
    else:
        out = tf.tensordot(x, weight, axes=[[-1], [1]])
    return out if bias is None else out + bias


def _matmul(run: Any, x: Any, other: Any = None, mat2: Any = None) -> Any:
    return run.tf.matmul(x, mat2 if other is None else other)


def _addmm(run: Any, x: Any, mat1: Any, mat2: Any, beta: Any, alpha: Any) -> Any:
    return beta * x + alpha * run.tf.matmul(mat1, mat2)


def _conv2d(
    run: Any,
    x: Any,
    weight: Any,
    bias: Any,
    stride: list[int],
    padding: Any,
    dilation: list[int],
    groups: int,
) -> Any:
    """Convolve NCHW with OIHW; TensorFlow's CPU kernels take NHWC and HWIO."""
    tf = run.tf
    dilate = pair(dilation)
    out_channels, _, *kernel = static(weight)
    if isinstance(padding, str):
        low, high = _named_padding(padding, kernel, dilate)
    else:
        low = high = pair(padding)
    nhwc = tf.transpose(x, [0, 2, 3, 1])
    if any((*low, *high)):
        nhwc = tf.pad(nhwc, [[0, 0], [low[0], high[0]], [low[1], high[1]], [0, 0]])
    hwio = _dilated(run, tf.transpose(weight, [2, 3, 1, 0]), dilate)
    parts = zip(
        tf.split(nhwc, groups, axis=3), tf.split(hwio, groups, axis=3), strict=True
    )
    # One convolution a group: TensorFlow's grouped kernel has no CPU gradient.
    done = [
        tf.nn.conv2d(part, k, strides=pair(stride), padding="VALID")
        for part, k in parts
    ]
    out = tf.transpose(tf.concat(done, axis=3), [0, 3, 1, 2])
    return out if bias is None else out + tf.reshape(bias, [1, out_channels, 1, 1])


def _dilated(run: Any, hwio: Any, dilation: tuple[int, int]) -> Any:
    """Return a kernel with zeros between its values.

    TensorFlow's dilated convolution has no gradient on CPUs.
    """
    tf, (high, wide) = run.tf, dilation
    if dilation == (1, 1):
        return hwio
    h, w, i, o = static(hwio)
    if h is None or w is None:
        raise UnsupportedOperator("kernels of varying size")
    zeros = [[0, 0], [0, high - 1], [0, 0], [0, wide - 1], [0, 0], [0, 0]]
    spread = tf.pad(tf.reshape(hwio, [h, 1, w, 1, i, o]), zeros)
    spread = tf.reshape(spread, [h * high, w * wide, i, o])
    return spread[: (h - 1) * high + 1, : (w - 1) * wide + 1]


def _named_padding(
    name: str, kernel: list[Any], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what torch pads for ``"valid"`` or ``"same"``: the odd one at the end."""
    if name == "valid":
        return (0, 0), (0, 0)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    low = (total[0] // 2, total[1] // 2)
    return low, (total[0] - low[0], total[1] - low[1])


def _conv1d(
    run: Any, x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, **rest: Any
) -> Any:
    """Convolve NCL as NCHW of height 1."""
    tf = run.tf
    out = _conv2d(
        run,
        tf.expand_dims(x, 2),
        tf.expand_dims(weight, 2),
        stride=[1, stride[0]],
        padding=padding if isinstance(padding, str) else [0, padding[0]],
        dilation=[1, dilation[0]],
        **rest,
    )
    return tf.squeeze(out, axis=[2])


def _normalised(run: Any, x: Any, axes: list[int], eps: float) -> Any:
    """Return x with mean 0 and variance 1 over ``axes`` (the biased variance)."""
    tf = run.tf
    mean = tf.reduce_mean(x, axis=axes, keepdims=True)
    centred = x - mean
    variance = tf.reduce_mean(tf.square(centred), axis=axes, keepdims=True)
    return centred * tf.math.rsqrt(variance + eps)


def _layer_norm(
    run: Any,
    x: Any,
    normalized_shape: list[int],
    weight: Any,
    bias: Any,
    eps: float,
    cudnn_enable: bool = True,
) -> Any:
    out = _normalised(run, x, list(range(-len(normalized_shape), 0)), eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _per_channel(run: Any, value: Any, x: Any) -> Any:
    return run.tf.reshape(value, [1, -1] + [1] * (len(x.shape) - 2))


def _group_norm(
    run: Any,
    x: Any,
    num_groups: int,
    weight: Any,
    bias: Any,
    eps: float,
    cudnn_enabled: bool = True,
) -> Any:
    tf, (_, channels, *rest) = run.tf, static(x)
    if channels is None or None in rest:
        raise UnsupportedOperator("sizes that vary")
    grouped = tf.reshape(x, [-1, num_groups, channels // num_groups, *rest])
    axes = list(range(2, len(rest) + 3))
    out = tf.reshape(_normalised(run, grouped, axes, eps), [-1, channels, *rest])
    out = out if weight is None else out * _per_channel(run, weight, x)
    return out if bias is None else out + _per_channel(run, bias, x)


def _batch_norm(
    run: Any,
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Any:
    """Normalise by the batch in training, by the frozen statistics in evaluation."""
    if run.training and training:
        axes = [a for a in range(len(x.shape)) if a != 1]
        out = _normalised(run, x, axes, eps)
    else:
        scale = run.tf.math.rsqrt(_per_channel(run, running_var, x) + eps)
        out = (x - _per_channel(run, running_mean, x)) * scale
    out = out if weight is None else out * _per_channel(run, weight, x)
    return out if bias is None else out + _per_channel(run, bias, x)


OPERATORS: Operators = {
    "aten.linear.default": _linear,
    "aten.matmul.default": _matmul,
    "aten.mm.default": _matmul,
    "aten.bmm.default": _matmul,
    "aten.addmm.default": _addmm,
    "aten.conv1d.default": _conv1d,
    "aten.conv1d.padding": _conv1d,
    "aten.conv2d.default": _conv2d,
    "aten.conv2d.padding": _conv2d,
    "aten.layer_norm.default": _layer_norm,
    "aten.group_norm.default": _group_norm,
    "aten.batch_norm.default": _batch_norm,
}
