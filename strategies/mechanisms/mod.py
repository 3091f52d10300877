"""Client half of differential privacy: what may leave a node, and local noise.

Everything that a client reports is a release. Under any privacy setting a train reply
holds the update and nothing else: no metrics, a number of examples that is always 1, no
text of an error. Evaluate messages are answered only where the job says what an answer
may cost (``privacy.evaluate-epsilon``), with an accuracy alone (:mod:`.evaluation`).

With ``privacy.trust = local`` the update is clipped and noised here, so that the server
need not be trusted with it (Kasiviswanathan et al., "What Can We Learn Privately?",
SIAM J. Computing 40(3), 2011): whatever the node's data are, replies differ by at most
two clips.

With ``privacy.trust = distributed`` the round is counted here; clip and noise are part
of the secure sum outside (:mod:`.encoder`), which the update reaches as it is.

Message format: that of :mod:`..update`, with ``num-examples`` 1; the answer to an
evaluate message is one MetricRecord with ``accuracy`` and ``num-examples`` 1.
"""

from __future__ import annotations

import numpy as np
from flwr.app import (
    ArrayRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable, Mod

from truststram.job import Job
from truststram.records import Float32, records_of
from truststram.rng import derive_seed

from ..accounting.events import Release
from ..base import NUM_EXAMPLES, sole_metrics
from ..update import Model, read_delta, with_delta
from ..withheld import WithheldError, withheld
from .clip import clip
from .csprng import Source
from .distributed import distributed_plan
from .evaluation import ACCURACY, MIDDLE, accuracy_of, accuracy_release, noisy_sum
from .lattice import from_lattice
from .noise import draw, lattice_for
from .plan import planned
from .spending import EVALUATIONS, RELEASES, ROUNDS, Spending

__all__ = ["private_mod"]


def private_mod(job: Job) -> Mod:
    """Return the mod for a job with privacy; the outermost but for encryption.

    Guarantees
    ----------
    No metric, count or error text of the functions inside leaves the node, but for
    accuracies that the job pays for; with central trust those are clipped here and
    noised by the server. With local trust: the replies of all rounds together,
    evaluations included, are (epsilon, delta)-differentially private for replacing
    everything that this node holds (or, with ``privacy.unit = example``, for one
    example more or less), also towards a server that keeps its run and node ids: a
    node that was asked more often than planned refuses, and so does one that is asked
    for noise of another plan or under another name of the run. That outlives a resume,
    and a restart of the node if it keeps its id (with Flower's authentication of
    SuperNodes; else it begins anew). A new Flower run with a new name has a budget of
    its own (:mod:`.spending`).
    """

    def mod(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        kind = message.metadata.message_type.split(".")[0]
        if kind == MessageType.EVALUATE:
            return _evaluated(job, message, context, call_next)
        if kind != MessageType.TRAIN:
            return call_next(message, context)
        spending = Spending(message, context)
        if job.privacy.unit == "example":
            spending.count(ROUNDS, job.train.rounds)
        reply = withheld(message, context, call_next)
        if not reply.has_content():
            return reply
        model = Model(records_of(message.content, ArrayRecord)[0])
        delta = np.ascontiguousarray(read_delta(reply.content, model))
        if job.privacy.distributed:  # the secure sum outside adds the noise
            shares = distributed_plan(job, len(delta))
            spending.charge(job, shares, shares.release)
        elif job.privacy.unit == "client" and not job.privacy.central:
            delta = _noisy(job, delta, context, spending)
        reply.content = with_delta(RecordDict(), delta)
        reply.content["metrics"] = MetricRecord({NUM_EXAMPLES: 1})
        return reply

    return mod


def _evaluated(
    job: Job, message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Answer with an accuracy, and with noise unless the server is trusted with it."""
    release = accuracy_release(job)
    if release is None:
        raise WithheldError("evaluation on private data is not released")
    reply = withheld(message, context, call_next, "evaluation")
    if not reply.has_content():
        return reply
    value = accuracy_of(sole_metrics(reply.content))
    if value is None:
        raise WithheldError(f"the task tells no {ACCURACY}, which alone is released")
    if not job.privacy.central:
        done = _charge_evaluation(job, release, message, context)
        source = _source(job, context, EVALUATIONS, done)
        value = noisy_sum([value], release, source, central=False) + MIDDLE
    told = MetricRecord({ACCURACY: value, NUM_EXAMPLES: 1})
    reply.content = RecordDict({"metrics": told})
    return reply


def _charge_evaluation(
    job: Job, release: Release, message: Message, context: Context
) -> int:
    """Count one evaluation before it is released; return how many were before."""
    spending = Spending(message, context)
    if job.privacy.unit == "example":
        times = job.privacy.evaluations(job.train.rounds)
        return spending.count(EVALUATIONS, times)
    model = Model(records_of(message.content, ArrayRecord)[0])
    return spending.charge(job, planned(job, 1, model.spec.size), release)


def _noisy(job: Job, delta: Float32, context: Context, spending: Spending) -> Float32:
    """Return the update clipped and noised, if the budget allows another one."""
    plan = planned(job, 1, len(delta))
    done = spending.charge(job, plan, plan.release)
    source = _source(job, context, RELEASES, done)
    on = lattice_for(plan.release, plan.lattice_clip, len(delta))
    integers = clip(delta, on).integers
    integers += draw(plan.release, on.units, len(delta), source)
    return from_lattice(integers, on)


def _source(job: Job, context: Context, *labels: str | int) -> Source:
    """Return where the noise comes from; an insecure one repeats with its labels."""
    if not job.privacy.insecure:
        return Source()
    node = str(context.node_config.get("partition-id", context.node_id))
    return Source.insecure(derive_seed(job.run.seed, "privacy", node, *labels))
