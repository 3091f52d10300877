# /// script
# requires-python = "==3.11.*"
# dependencies = ["tensorflow-federated==0.87.0"]
# [tool.uv]
# override-dependencies = ["jax==0.4.13", "jaxlib==0.4.13"]
# ///
"""Let TensorFlow Federated build a job, and write down what it built.

The only file that imports TensorFlow Federated, which cannot live in one environment
with Flower: :mod:`tff_bridge.compiler` runs it as a process of its own, once a job
(``uv run --script`` reads the requirements above)::

    compile_plan.py INPUT OUTPUT

``INPUT`` has ``spec.json`` and the traced model (``graph.json``, ``constants.npz``) or
``computation.py``, the user's own computation. ``OUTPUT`` gets ``result.json``
and a ``GraphDef`` for each piece. Nothing is executed but small constants and a probe
of the sum; no process is started.

TensorFlow Federated gets zeros for the model's parameters: the graphs then depend on
shapes only, and the values travel beside them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Beside this file there are modules with general names: find the package instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402  # path first
import tensorflow as tf  # noqa: E402  # path first
import tensorflow_federated as tff  # noqa: E402  # path first

from tff_bridge.classifier_tf import METRICS, ClassifierParts  # noqa: E402  # path first
from tff_bridge.graphs_tf import evaluate, is_additive, shrink  # noqa: E402  # path first

Json = dict[str, Any]
SECURE_SLOTS: dict[str, tuple[str, Callable[[int], int]]] = {
    "bitwidth": ("secure_sum_bitwidth", lambda bits: 1 << bits),
    "max-input": ("secure_sum_max_input", lambda largest: largest + 1),
    "modulus": ("secure_modular_sum_modulus", lambda modulus: modulus),
}


def functional_model(
    graph: Json, constants: Mapping[str, Any], weights: Any, metrics: bool
) -> Any:
    """Return the traced model for ``tff.learning``."""
    parts = ClassifierParts(graph, constants)
    return tff.learning.models.FunctionalModel(
        initial_weights=(tuple(weights), ()),
        predict_on_batch_fn=parts.predict,
        loss_fn=parts.loss,
        input_spec=parts.input_spec,
        **({"metrics_fns": parts.metrics} if metrics else {}),
    )


def learning_process(spec: Json, model: Any) -> Any:
    """Return the ``tff.learning`` process of a job."""
    algorithms, key = tff.learning.algorithms, spec.get
    server = server_optimizer(spec)
    momentum = key("train.momentum") or None
    client = tff.learning.optimizers.build_sgdm(key("train.lr"), momentum)
    options: Json = aggregator(spec)
    if spec["tff.algorithm"] == "fed-sgd":
        return algorithms.build_fed_sgd(model, server, **options)
    if spec["tff.aggregator"] == "dp":
        return algorithms.build_unweighted_fed_avg(model, client, server, **options)
    weighting = tff.learning.ClientWeighting
    options["client_weighting"] = {
        "examples": weighting.NUM_EXAMPLES,
        "uniform": weighting.UNIFORM,
    }[spec["tff.weighting"]]
    if spec["tff.algorithm"] == "fed-prox":
        return algorithms.build_weighted_fed_prox(
            model, key("tff.proximal"), client, server, **options
        )
    if spec["tff.algorithm"] == "mime-lite":
        return algorithms.build_weighted_mime_lite(model, client, server, **options)
    return algorithms.build_weighted_fed_avg(model, client, server, **options)


def server_optimizer(spec: Json) -> Any:
    """Return the server's optimizer, with the constants of Reddi et al., ICLR 2021."""
    optimizers, lr = tff.learning.optimizers, spec["server.lr"]
    if spec["server.optimizer"] == "adam":
        return optimizers.build_adam(lr, beta_2=0.99, epsilon=1e-3)
    if spec["server.optimizer"] == "yogi":
        return optimizers.build_yogi(lr, beta_2=0.99, epsilon=1e-3)
    if spec["server.optimizer"] == "adagrad":
        return optimizers.build_adagrad(lr, epsilon=1e-3)
    return optimizers.build_sgdm(lr, spec["server.momentum"] or None)


def aggregator(spec: Json) -> Json:
    """Return the options that a job's aggregator stands for."""
    name = spec["tff.aggregator"]
    limits = {"zeroing": spec["tff.zeroing"], "clipping": spec["tff.clipping"]}
    if name == "robust":
        return {"model_aggregator": tff.learning.robust_aggregator(**limits)}
    if name == "compression":
        return {"model_aggregator": tff.learning.compression_aggregator(**limits)}
    if name == "secure":
        return {
            "model_aggregator": tff.learning.secure_aggregator(**limits),
            # Metrics inside the secure sum too: nothing is sent in clear.
            "metrics_aggregator": tff.learning.metrics.secure_sum_then_finalize,
        }
    if name == "dp":
        factory = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
            noise_multiplier=spec["tff.noise-multiplier"],
            clients_per_round=float(spec["tff.clients-per-round"]),
            clip=spec["tff.clip"],
        )
        return {"model_aggregator": factory}
    return {}


def analytics_process(path: Path) -> tuple[Any, Any]:
    """Return (initialize, next) for the computation in a file of the user's.

    The file defines ``computation``, a ``tff.federated_computation`` from data at the
    clients to a result at the server; or one of (state, data) to (state, result), and
    ``initialize`` beside it.
    """
    found = importlib.util.spec_from_file_location("user_computation", path)
    if found is None or found.loader is None:
        raise ValueError(f"{path.name} cannot be imported")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    computation = getattr(module, "computation", None)
    if not isinstance(computation, tff.Computation):
        raise ValueError("the file defines no `computation` of TensorFlow Federated")
    if hasattr(module, "initialize"):
        return module.initialize, computation

    initialize = tff.federated_computation(lambda: tff.federated_value((), tff.SERVER))
    step = tff.federated_computation(
        lambda state, data: (state, computation(data)),
        initialize.type_signature.result,
        computation.type_signature.parameter,
    )
    return initialize, step


def program(
    initialize: Any, step: Any, parameters: list[list[int]]
) -> tuple[Json, dict[str, bytes]]:
    """Return the description and the graphs of a process' pieces."""
    mapreduce = tff.backends.mapreduce
    form = mapreduce.get_map_reduce_form_for_computation(step)
    computations = {
        "init": mapreduce.get_state_initialization_computation(initialize),
        **{
            name: getattr(form, name)
            for name in (
                *("prepare", "work", "zero", "accumulate", "merge"),
                *("report", "update"),
            )
        },
    }
    pieces, graphs = {}, {}
    for name, computation in computations.items():
        pieces[name], graphs[name] = piece(computation)
    describe_sent(pieces["work"], form, parameters)
    work_data = form.work.type_signature.parameter[0]
    described = {
        "pieces": pieces,
        "data": sum(1 for _ in typed_leaves(work_data)),
        "additive": is_additive(pieces, graphs),
        "parameters": [
            index
            for index, leaf in enumerate(pieces["init"]["outputs"])
            if leaf["path"].startswith("global_model_weights/trainable/")
        ],
    }
    return described, graphs


def piece(computation: Any) -> tuple[Json, bytes]:
    """Return how a computation is called, and its graph."""
    made = tff.framework.serialize_computation(computation).tensorflow
    graph = tf.compat.v1.GraphDef.FromString(made.graph_def.value)
    kind = computation.type_signature
    names = {node.name for node in graph.node}
    # Optimisation may have removed the token.
    token = made.session_token_tensor_name
    described = {
        "inputs": list(leaves(kind.parameter, made.parameter))
        if kind.parameter
        else [],
        "outputs": list(leaves(kind.result, made.result)),
        "initialize": made.initialize_op,
        "token": token if token.split(":")[0] in names else "",
    }
    shrink(graph)
    return described, graph.SerializeToString(deterministic=True)


def typed_leaves(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (path, type) of the tensors and sequences in a type, depth first."""
    if isinstance(kind, tff.StructType):
        for index, (name, element) in enumerate(tff.structure.to_elements(kind)):
            yield from typed_leaves(element, (*path, name or str(index)))
    else:
        yield "/".join(path), kind


def bound_leaves(binding: Any) -> Iterator[str]:
    """Yield the graph's tensor names in a binding, depth first."""
    which = binding.WhichOneof("binding")
    if which == "struct":
        for element in binding.struct.element:
            yield from bound_leaves(element)
    elif which == "sequence":
        yield binding.sequence.variant_tensor_name
    elif which == "tensor":
        yield binding.tensor.tensor_name


def leaves(kind: Any, binding: Any) -> Iterator[Json]:
    """Yield the leaves of a type with their tensors."""
    pairs = zip(typed_leaves(kind), bound_leaves(binding), strict=True)
    for (path, leaf), tensor in pairs:
        if isinstance(leaf, tff.SequenceType):
            elements = [described(p, e, "") for p, e in typed_leaves(leaf.element)]
            yield {
                "path": path,
                "tensor": tensor,
                "dtype": "dataset",
                "shape": [],
                "elements": elements,
            }
        else:
            yield described(path, leaf, tensor)


def described(path: str, kind: Any, tensor: str) -> Json:
    """Return one tensor as the manifest has it."""
    name = np.dtype(kind.dtype).name
    name = "string" if name.startswith(("str", "object", "bytes")) else name
    if kind.shape is None:
        raise ValueError(f"{path}: a tensor of unknown rank")
    return {"path": path, "tensor": tensor, "dtype": name, "shape": list(kind.shape)}


def describe_sent(work: Json, form: Any, parameters: list[list[int]]) -> None:
    """Add role and slot to each leaf that ``work`` returns."""
    clear, *sealed = (
        kind for _, kind in tff.structure.to_elements(form.work.type_signature.result)
    )
    roles = list(sent_roles(clear, parameters))
    slots: list[Json] = [{"role": role} for role in roles]
    for (slot, (name, bound)), kind in zip(SECURE_SLOTS.items(), sealed, strict=True):
        values = constants_of(getattr(form, name))
        for role, value in zip(sent_roles(kind, parameters), values, strict=True):
            slots.append({"role": role, "slot": slot, "limit": bound(value)})
    for leaf, more in zip(work["outputs"], slots, strict=True):
        leaf.update(more)


def sent_roles(kind: Any, parameters: list[list[int]]) -> Iterator[str]:
    """Yield the role of each leaf of what is sent, by the structure it stands in.

    An aggregator of ``tff.learning`` keeps the parameters' structure together and puts
    the weight after it; metrics have the names that our metrics have.
    """
    groups = list(tff.structure.to_elements(kind))
    models = [i for i, (_, g) in enumerate(groups) if is_model(g, parameters)]
    for index, (_, group) in enumerate(groups):
        count = sum(1 for _ in typed_leaves(group))
        paths = [path for path, _ in typed_leaves(group)]
        before = groups[index - 1][1] if index else None
        if index in models:
            # Mime-lite sends gradients too, before the update.
            role = "update" if index == models[-1] else "gradient"
        elif paths and all("identity_values" in p or "tensors/" in p for p in paths):
            role = "encoded"
        elif tuple(paths) == METRICS or tuple(p[2:] for p in paths) == METRICS:
            role = "metric"
        elif (
            before is not None
            and index - 1 in models
            and isinstance(group, tff.TensorType)
            and np.dtype(group.dtype) == np.float32
        ):
            role = "weight"
        else:
            role = "aggregator"
        yield from [role] * count


def is_model(kind: Any, parameters: list[list[int]]) -> bool:
    """Return whether a type has one tensor for each of the model's parameters."""
    if not parameters or not isinstance(kind, tff.StructType):
        return False
    elements = [element for _, element in tff.structure.to_elements(kind)]
    return (
        all(isinstance(e, tff.TensorType) for e in elements)
        and [list(e.shape) for e in elements] == parameters
    )


def constants_of(computation: Any) -> list[int]:
    """Return the integers that a computation without arguments stands for."""
    made = tff.framework.serialize_computation(computation).tensorflow
    graph = tf.compat.v1.GraphDef.FromString(made.graph_def.value)
    names = list(bound_leaves(made.result))
    return [int(value) for value in evaluate(graph, names, {})]


def processes(source: Path) -> Iterator[tuple[str, Any, Any, list[list[int]]]]:
    """Yield (program, initialize, next, shapes of the parameters)."""
    spec = json.loads((source / "spec.json").read_text())
    if (source / "computation.py").exists():
        yield ("analytics", *analytics_process(source / "computation.py"), [])
        return
    graph, constants = traced(source)
    shapes = [shape for _, _, shape in graph["parameters"]]
    zeros = [np.zeros(shape, np.float32) for shape in shapes]
    # What clients report is a release: with privacy there are no metrics in training.
    clear = spec["tff.aggregator"] != "dp"
    model = functional_model(graph, constants, zeros, metrics=clear)
    process = learning_process(spec, model)
    yield "train", process.initialize, process.next, shapes
    if spec["tff.evaluation"]:
        model = functional_model(graph, constants, zeros, metrics=True)
        process = tff.learning.algorithms.build_fed_eval(model)
        yield "evaluate", process.initialize, process.next, shapes


def traced(source: Path) -> tuple[Json, dict[str, Any]]:
    """Return the traced model: operators and constants."""
    graph = json.loads((source / "graph.json").read_text())
    with np.load(source / "constants.npz", allow_pickle=False) as constants:
        return graph, dict(constants)


def main(source: Path, target: Path) -> None:
    """Compile what is in one folder into another one."""
    result: Json = {"programs": {}, "built_with": versions()}
    for name, initialize, step, shapes in processes(source):
        result["programs"][name], graphs = program(initialize, step, shapes)
        for piece_name, graph in graphs.items():
            (target / f"{name}-{piece_name}.pb").write_bytes(graph)
    (target / "result.json").write_text(json.dumps(result))


def versions() -> dict[str, str]:
    """Return what compiled the plan."""
    return {
        "tensorflow-federated": tff.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
