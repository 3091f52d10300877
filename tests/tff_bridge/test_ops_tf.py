"""torch and TensorFlow agree on outputs and gradients of every family of models.

The one other test module that imports TensorFlow is the runtime's; pytest runs both in
one process, so the import is paid once.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from tff_bridge.ops_tf import OPERATORS, Run, UnsupportedOperator, apply
from tff_bridge.trace import trace

from .models import MODELS, Frozen, Mlp

TOLERANCE = 1e-5


def built(kind):
    torch.manual_seed(0)
    return kind()


def by_torch(model, x, labels, training):
    model.train(training)
    model.zero_grad()
    out = model(x)
    nn.functional.cross_entropy(out, labels).backward()
    grads = [p.grad.numpy() for p in model.parameters() if p.requires_grad]
    return out.detach().numpy(), grads


def by_tensorflow(traced, x, labels, training):
    weights = [tf.constant(w) for w in traced.weights.values()]
    spec = tf.TensorSpec([None, *x.shape[1:]], x.numpy().dtype)

    def run(x, *weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            out = apply(Run(tf, training), traced.graph, weights, traced.constants, x)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels.numpy(), out)
            loss = tf.reduce_mean(loss)
        return out, tape.gradient(loss, weights)

    # The batch has no fixed size, as in a plan.
    signature = [spec, *(tf.TensorSpec(w.shape, w.dtype) for w in weights)]
    run = tf.function(run, input_signature=signature, autograph=False)
    out, grads = run(x.numpy(), *weights)
    return out.numpy(), [tf.convert_to_tensor(g).numpy() for g in grads]


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_outputs_and_gradients_agree(kind):
    model, x = built(kind), kind.example
    traced = trace(model, x[:2], allow_frozen_bn=True)
    labels = torch.arange(len(x)) % 4
    for training in (False, True):
        # Before torch's run: in training it changes running statistics.
        ours, our_grads = by_tensorflow(traced, x, labels, training)
        theirs, their_grads = by_torch(model, x, labels, training)
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)
        assert len(our_grads) == len(their_grads)
        for name, a, b in zip(traced.weights, our_grads, their_grads, strict=True):
            np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0, err_msg=name)
            assert np.abs(b).max() > 1e-4, f"{name}: the gradient tests nothing"


def test_a_batch_may_have_any_size():
    model = built(Mlp)
    traced = trace(model, Mlp.example[:2])
    for rows in (1, 5):
        x = Mlp.example[:rows]
        ours, _ = by_tensorflow(traced, x, torch.zeros(rows).long(), True)
        np.testing.assert_allclose(ours, model(x).detach().numpy(), atol=TOLERANCE)


def test_dropout_drops_in_training_only():
    model = nn.Sequential(nn.Linear(20, 400), nn.Dropout(0.25))
    traced = trace(model, Mlp.example[:2])
    weights = list(traced.weights.values())
    x = tf.constant(Mlp.example.numpy())
    arguments = (traced.graph, weights, traced.constants, x)
    dense = apply(Run(tf, training=False), *arguments).numpy()
    np.testing.assert_allclose(dense, model.eval()(Mlp.example).detach(), atol=1e-6)
    thin = apply(Run(tf, training=True), *arguments).numpy()
    kept = thin != 0
    # 2000 draws: five standard deviations are 0.048.
    assert abs(kept.mean() - 0.75) < 0.05
    np.testing.assert_allclose(thin[kept], dense[kept] / 0.75, rtol=1e-5)


def test_an_argument_without_translation_is_named_with_its_place():
    model = nn.Sequential(
        nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(9, 2)
    )
    x = torch.zeros(2, 1, 5, 5)
    traced = trace(model, x)
    with pytest.raises(UnsupportedOperator, match=r"0 \(MaxPool2d\).*ceil_mode = True"):
        apply(
            *(Run(tf, training=False), traced.graph),
            *(list(traced.weights.values()), traced.constants, tf.constant(x.numpy())),
        )


def test_evaluation_with_frozen_statistics_is_not_torchs_after_training():
    """What ``allow-frozen-bn`` warns of happens."""
    model, x = built(Frozen), Frozen.example
    traced = trace(model, x[:2], allow_frozen_bn=True)
    labels = torch.zeros(len(x)).long()
    ours, _ = by_tensorflow(traced, x, labels, training=False)
    theirs, _ = by_torch(model, x, labels, training=False)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    model.train()(x * 3 + 1)
    moved, _ = by_torch(model, x, labels, training=False)
    assert np.abs(moved - ours).max() > 1e-2


def test_the_table_names_operators_that_torch_has():
    for name in OPERATORS:
        if name.startswith("aten."):
            _, packet, overload = name.split(".")
            assert hasattr(getattr(torch.ops.aten, packet), overload), name
