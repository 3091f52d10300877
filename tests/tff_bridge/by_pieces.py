"""Rounds as TensorFlow Federated defines them: a plan's pieces, one after the other."""

from __future__ import annotations

import numpy as np

from tff_bridge.execution import PieceFunction
from tff_bridge.plan import Plan
from tff_bridge.runtime import SiloRuntime
from tff_bridge.silo_data import Passes
from truststram.job import Job
from truststram.rng import derive_seed
from truststram.task import Node, Task


def by_pieces(
    plan: Plan, task: Task, settings: Job, rounds: int, nodes: int
) -> list[np.ndarray]:
    """Return the model after the rounds, of silos that see data as ours do.

    What silos send in clear is added by ``accumulate``, what they seal as integers.
    """
    program, spec = plan.programs["train"], plan.job
    call = {name: PieceFunction(piece, name) for name, piece in program.pieces.items()}
    silo = SiloRuntime(program)
    clear = sum(leaf.slot == "accumulate" for leaf in program.sent)
    state = call["init"]()
    for place, weights in zip(program.parameters, plan.weights.values(), strict=True):
        state[place] = weights
    for number in range(1, rounds + 1):
        prepared, sealed = call["prepare"](*state), []
        total = call["zero"]() if clear else []
        for node in range(nodes):
            data = task.train_data(settings, Node(partition=node, partitions=nodes))
            seed = derive_seed(settings.run.seed, "train", str(node), number)
            order = Passes(seed, len(data), spec["train.local-epochs"])
            x, y = data.x.numpy(), data.y.numpy()
            sent = silo.work(x, y, order, spec["train.batch-size"], prepared)
            if clear:
                total = call["accumulate"](*total, *sent[:clear])
            sealed.append(sent[clear:])
        report = call["report"](*total) if clear else []
        sums = [
            np.asarray(np.sum(terms, axis=0, dtype=terms[0].dtype))
            for terms in zip(*sealed, strict=True)
        ]
        state = call["update"](*state, *report, *sums)[: len(program.state)]
    return [state[place] for place in program.parameters]
