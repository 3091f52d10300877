"""Mean and variance of each of 30 features, and a histogram of labels.

A computation of a user's own, for ``tff.computation``. It needs TensorFlow Federated
and runs in the compiler's environment only.
"""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

FEATURES, CLASSES = 30, 2
BATCHES = tff.SequenceType(
    (
        tff.TensorType(np.float32, [None, FEATURES]),
        tff.TensorType(np.int64, [None]),
    )
)


@tff.tensorflow.computation(BATCHES)
def sums(batches):
    """Return count, sum, sum of squares and histogram of a silo's data."""

    def add(total, batch):
        x, y = batch
        count, first, second, labels = total
        return (
            count + tf.cast(tf.shape(x)[0], tf.float32),
            first + tf.reduce_sum(x, axis=0),
            second + tf.reduce_sum(tf.square(x), axis=0),
            labels + tf.reduce_sum(tf.one_hot(y, CLASSES, dtype=tf.int64), axis=0),
        )

    zeros = tf.zeros([FEATURES])
    start = (tf.zeros([]), zeros, zeros, tf.zeros([CLASSES], tf.int64))
    return batches.reduce(start, add)


@tff.tensorflow.computation
def moments(totals):
    """Return what the sums of all silos say."""
    count, first, second, labels = totals
    mean = first / count
    return collections.OrderedDict(
        mean=mean, variance=second / count - tf.square(mean), labels=labels
    )


@tff.federated_computation(tff.FederatedType(BATCHES, tff.CLIENTS))
def computation(data):
    """Return the moments of all silos' data together."""
    return tff.federated_map(moments, tff.federated_sum(tff.federated_map(sums, data)))
