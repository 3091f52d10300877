"""A traced classifier as the functions that ``tff.learning`` wants.

Runs in the compiler's environment only.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tensorflow as tf

from .ops_tf import Run, apply

__all__ = ["METRICS", "ClassifierParts"]

# What silos sum up; the server turns the sums into loss, accuracy and examples.
METRICS = ("loss_sum", "correct", "examples")

_F = TypeVar("_F", bound=Callable[..., Any])
# TensorFlow Federated wants every function of a model to be a tf.function.
_graph: Callable[[_F], _F] = tf.function


class ClassifierParts:
    """The parts of a ``FunctionalModel``.

    Parameters
    ----------
    graph : dict
        :attr:`tff_bridge.trace.Traced.graph`.
    constants : mapping
        :attr:`tff_bridge.trace.Traced.constants`.

    Attributes
    ----------
    predict, loss : callable
        Scores of a batch; mean cross-entropy over a batch.
    metrics : tuple of callable
        Initialize, update, finalize.
    input_spec : tuple
        Types of a batch of examples and of their labels.
    """

    def __init__(self, graph: dict[str, Any], constants: Mapping[str, Any]) -> None:
        @_graph
        def predict(weights: Any, x: Any, training: bool) -> Any:
            trainable, _ = weights
            return apply(Run(tf, training), graph, trainable, constants, x)

        given = graph["input"]
        features = tf.TensorSpec(given["shape"], tf.dtypes.as_dtype(given["dtype"]))
        self.predict = predict
        self.loss = _loss
        self.metrics = (_initialize, _update, _finalize)
        self.input_spec = (features, tf.TensorSpec([None], tf.int64))


@_graph
def _loss(output: Any, label: Any, sample_weight: Any = None) -> Any:
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(label, output)
    return tf.reduce_mean(losses)


@_graph
def _initialize() -> Any:
    zero = tf.zeros([], tf.int64)
    return collections.OrderedDict(loss_sum=tf.zeros([]), correct=zero, examples=zero)


@_graph
def _update(
    state: Any, y_true: Any, batch_output: Any, sample_weight: Any = None
) -> Any:
    rows = tf.shape(y_true, out_type=tf.int64)[0]
    hits = tf.equal(tf.argmax(batch_output.predictions, axis=1), y_true)
    return collections.OrderedDict(
        loss_sum=state["loss_sum"] + batch_output.loss * tf.cast(rows, tf.float32),
        correct=state["correct"] + tf.reduce_sum(tf.cast(hits, tf.int64)),
        examples=state["examples"] + rows,
    )


@_graph
def _finalize(state: Any) -> Any:
    rows = tf.cast(state["examples"], tf.float32)
    hits = tf.cast(state["correct"], tf.float32)
    return collections.OrderedDict(
        loss=tf.math.divide_no_nan(state["loss_sum"], rows),
        accuracy=tf.math.divide_no_nan(hits, rows),
        examples=state["examples"],
    )
