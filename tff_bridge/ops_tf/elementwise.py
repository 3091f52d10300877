"""Operators that work element by element, and reductions."""

from __future__ import annotations

import math
import operator
from typing import Any

from .table import Operators, only

__all__ = ["OPERATORS"]


def _like(run: Any, x: Any, other: Any) -> tuple[Any, Any]:
    """Return both operands with one data type, as torch promotes them.

    A number takes the tensor's type; an integer tensor meets a float as float32.
    """
    tf = run.tf
    if not tf.is_tensor(x) and not tf.is_tensor(other):
        return x, other
    if not tf.is_tensor(x):
        b, a = _like(run, other, x)
        return a, b
    if tf.is_tensor(other):
        if x.dtype == other.dtype:
            return x, other
        wide = x.dtype if x.dtype.is_floating or not other.dtype.is_floating else None
        wide = wide or other.dtype
        return tf.cast(x, wide), tf.cast(other, wide)
    if isinstance(other, float) and not x.dtype.is_floating:
        x = tf.cast(x, tf.float32)
    return x, tf.cast(other, x.dtype)


def _binary(name: str) -> Any:
    def run_it(run: Any, x: Any, other: Any, alpha: Any = 1) -> Any:
        x, other = _like(run, x, other)
        if alpha != 1:
            other = other * alpha
        return getattr(operator, name)(x, other)

    return run_it


def _reversed_sub(run: Any, x: Any, other: Any, alpha: Any = 1) -> Any:
    x, other = _like(run, x, other)
    return other - x * run.tf.cast(alpha, x.dtype)


def _unary(path: str) -> Any:
    def run_it(run: Any, x: Any) -> Any:
        function = run.tf
        for part in path.split("."):
            function = getattr(function, part)
        return function(x)

    return run_it


def _gelu(run: Any, x: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + run.tf.tanh(inner))
    return 0.5 * x * (1 + run.tf.math.erf(x * math.sqrt(0.5)))


def _silu(run: Any, x: Any) -> Any:
    return x * run.tf.sigmoid(x)


def _leaky_relu(run: Any, x: Any, negative_slope: float) -> Any:
    return run.tf.nn.leaky_relu(x, alpha=negative_slope)


def _elu(run: Any, x: Any, alpha: float, scale: float, input_scale: float) -> Any:
    only(scale=(scale, 1), input_scale=(input_scale, 1))
    tf = run.tf
    # expm1 of the positive part would overflow, and a masked infinity has no gradient.
    return tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0.0)))


def _clamp(run: Any, x: Any, min: Any = None, max: Any = None) -> Any:
    x = x if min is None else run.tf.maximum(x, run.tf.cast(min, x.dtype))
    return x if max is None else run.tf.minimum(x, run.tf.cast(max, x.dtype))


def _hardtanh(run: Any, x: Any, min_val: float, max_val: float) -> Any:
    return run.tf.clip_by_value(x, min_val, max_val)


def _pow(run: Any, x: Any, exponent: Any) -> Any:
    return run.tf.square(x) if exponent == 2 else run.tf.pow(x, float(exponent))


def _softmax(run: Any, x: Any, dim: int, dtype: Any = None) -> Any:
    return run.tf.nn.softmax(x if dtype is None else run.tf.cast(x, dtype), axis=dim)


def _log_softmax(run: Any, x: Any, dim: int, dtype: Any = None) -> Any:
    x = x if dtype is None else run.tf.cast(x, dtype)
    return run.tf.nn.log_softmax(x, axis=dim)


def _dropout(run: Any, x: Any, p: float, train: bool) -> Any:
    return run.tf.nn.dropout(x, rate=p) if run.training and train and p else x


def _reduce(name: str) -> Any:
    def run_it(
        run: Any, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None
    ) -> Any:
        x = x if dtype is None else run.tf.cast(x, dtype)
        axis = dim if dim != [] else None
        return getattr(run.tf, name)(x, axis=axis, keepdims=keepdim)

    return run_it


def _cast(run: Any, x: Any, dtype: Any = None, **unused: Any) -> Any:
    return x if dtype is None else run.tf.cast(x, dtype)


def _filled(value: float) -> Any:
    def run_it(run: Any, size: list[Any], dtype: Any = None, **unused: Any) -> Any:
        shape = run.tf.stack([run.tf.cast(n, run.tf.int32) for n in size])
        return run.tf.fill(shape, run.tf.cast(value, dtype or run.tf.float32))

    return run_it


OPERATORS: Operators = {
    **{
        f"aten.{torch}{inplace}.{kind}": _binary(python)
        for torch, python in (
            *(("add", "add"), ("sub", "sub")),
            *(("mul", "mul"), ("div", "truediv")),
        )
        for inplace in ("", "_")
        for kind in ("Tensor", "Scalar")
    },
    # Sizes of tensors are computed in Python.
    **{f"python.{n}": _binary(n) for n in ("add", "sub", "mul", "floordiv", "truediv")},
    **{
        f"aten.{torch}{inplace}.default": _unary(path)
        for torch, path in (
            *(("relu", "nn.relu"), ("relu6", "nn.relu6"), ("tanh", "tanh")),
            ("sigmoid", "sigmoid"),
            *(("exp", "exp"), ("log", "math.log"), ("sqrt", "sqrt")),
            *(("rsqrt", "math.rsqrt"), ("neg", "negative"), ("abs", "abs")),
            *(("erf", "math.erf"), ("sin", "sin"), ("cos", "cos")),
        )
        for inplace in ("", "_")
    },
    "aten.rsub.Scalar": _reversed_sub,
    "aten.rsub.Tensor": _reversed_sub,
    "aten.gelu.default": _gelu,
    "aten.hardtanh.default": _hardtanh,
    "aten.hardtanh_.default": _hardtanh,
    "aten.silu.default": _silu,
    "aten.silu_.default": _silu,
    "aten.leaky_relu.default": _leaky_relu,
    "aten.leaky_relu_.default": _leaky_relu,
    "aten.elu.default": _elu,
    "aten.elu_.default": _elu,
    "aten.clamp.default": _clamp,
    "aten.pow.Tensor_Scalar": _pow,
    "aten.softmax.int": _softmax,
    "aten.log_softmax.int": _log_softmax,
    "aten.dropout.default": _dropout,
    "aten.mean.dim": _reduce("reduce_mean"),
    "aten.mean.default": _reduce("reduce_mean"),
    "aten.sum.dim_IntList": _reduce("reduce_sum"),
    "aten.sum.default": _reduce("reduce_sum"),
    "aten.amax.default": _reduce("reduce_max"),
    "aten.to.dtype": _cast,
    "aten._to_copy.default": _cast,
    "aten.zeros.default": _filled(0.0),
    "aten.ones.default": _filled(1.0),
}
