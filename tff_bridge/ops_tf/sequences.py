"""Embeddings, recurrent layers and attention."""

from __future__ import annotations

import math
from typing import Any

from .table import Operators, UnsupportedOperator, only, static

__all__ = ["OPERATORS"]


def _embedding(
    run: Any,
    weight: Any,
    indices: Any,
    padding_idx: int,
    scale_grad_by_freq: bool,
    sparse: bool,
) -> Any:
    only(scale_grad_by_freq=(scale_grad_by_freq, False), sparse=(sparse, False))
    tf = run.tf
    if padding_idx >= 0:
        # torch gives the row of the padding no gradient.
        rows = tf.range(tf.shape(weight)[0])
        learnt = tf.cast(tf.not_equal(rows, padding_idx), weight.dtype)[:, None]
        weight = weight * learnt + tf.stop_gradient(weight * (1 - learnt))
    return tf.gather(weight, indices)


def _lstm(
    run: Any,
    x: Any,
    hx: list[Any],
    params: list[Any],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    """Run layers of LSTM, one step after the other (the length is fixed).

    torch's gates are input, forget, cell, output, in this order.
    """
    only(bidirectional=(bidirectional, False))
    if dropout and num_layers > 1:
        only(dropout=(dropout, 0.0))
    tf, each = run.tf, 4 if has_biases else 2
    time = 1 if batch_first else 0
    if static(x)[time] is None:
        raise UnsupportedOperator("sequences of varying length")
    steps = tf.unstack(x, axis=time)
    last_h, last_c = [], []
    for layer in range(num_layers):
        w_x, w_h, *biases = params[layer * each : (layer + 1) * each]
        h, c = hx[0][layer], hx[1][layer]
        bias = sum(biases) if biases else 0.0
        done = []
        for step in steps:
            gates = tf.matmul(step, w_x, transpose_b=True) + bias
            gates += tf.matmul(h, w_h, transpose_b=True)
            i, f, g, o = tf.split(gates, 4, axis=1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o) * tf.tanh(c)
            done.append(h)
        steps = done
        last_h.append(h)
        last_c.append(c)
    return tf.stack(steps, axis=time), tf.stack(last_h), tf.stack(last_c)


def _attention(
    run: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Scaled dot-product attention (Vaswani et al., NeurIPS 2017, eq. 1)."""
    only(enable_gqa=(enable_gqa, False))
    tf = run.tf
    size = static(query)[-1]
    if size is None:
        raise UnsupportedOperator("heads of varying size")
    factor = scale if scale is not None else 1 / math.sqrt(size)
    scores = tf.matmul(query * factor, key, transpose_b=True)
    lowest = tf.constant(scores.dtype.min, scores.dtype)
    if is_causal:
        ones = tf.ones_like(scores[..., :, :])
        scores = tf.where(tf.linalg.band_part(ones, -1, 0) > 0, scores, lowest)
    if attn_mask is not None:
        if attn_mask.dtype == tf.bool:
            scores = tf.where(attn_mask, scores, lowest)
        else:
            scores += attn_mask
    weights = tf.nn.softmax(scores, axis=-1)
    if run.training and dropout_p:
        weights = tf.nn.dropout(weights, rate=dropout_p)
    return tf.matmul(weights, value)


OPERATORS: Operators = {
    "aten.embedding.default": _embedding,
    "aten.lstm.input": _lstm,
    "aten.scaled_dot_product_attention.default": _attention,
}
