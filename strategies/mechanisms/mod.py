"""Client half of differential privacy: what may leave a node, and local noise.

Everything that a client reports is a release. Under any privacy setting a train reply
holds the update and nothing else: no metrics, a number of examples that is always 1, no
text of an error. Evaluate messages are refused: accuracies on private data are not part
of the account.

With ``privacy.trust = local`` the update is clipped and noised here, so that the server
need not be trusted with it (Kasiviswanathan et al., "What Can We Learn Privately?",
SIAM J. Computing 40(3), 2011): whatever the node's data are, replies differ by at most
two clips.

Message format: that of :mod:`..update`, with ``num-examples`` 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from logging import ERROR

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.logger import log

from truststram.errors import TrustStramError
from truststram.job import Job
from truststram.records import Float32, records_of
from truststram.rng import derive_seed

from ..accounting.events import Release
from ..base import NUM_EXAMPLES
from ..update import Model, read_delta, with_delta
from .clip import clip
from .csprng import Source
from .lattice import from_lattice
from .noise import draw, lattice_for
from .plan import Plan, planned

__all__ = ["WithheldError", "private_mod"]

# Where a node counts its releases: context.state, which Flower keeps per run and node.
STATE, RELEASES, ROUNDS = "truststram-privacy", "releases", "rounds"


class WithheldError(TrustStramError):
    """What happened on the node stays there; only this is said."""


def private_mod(job: Job) -> Mod:
    """Return the mod for a job with privacy; the outermost but for encryption.

    Guarantees
    ----------
    No metric, count or error text of the functions inside leaves the node, and no
    answer to an evaluate message. With local trust: the replies of all rounds together
    are (epsilon, delta)-differentially private for replacing everything that this node
    holds, also towards the server; a node that was asked more often than planned
    refuses. The count of rounds lives as long as Flower keeps the node's state, so a
    node that was restarted counts anew: give it a budget per restart, or do not.
    """

    def mod(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        kind = message.metadata.message_type.split(".")[0]
        if kind == MessageType.EVALUATE:
            raise WithheldError("evaluation on private data is not released")
        if kind != MessageType.TRAIN:
            return call_next(message, context)
        if job.privacy.unit == "example":
            _count_round(job, context)
        reply = _withheld(message, context, call_next)
        if not reply.has_content():
            return reply
        model = Model(records_of(message.content, ArrayRecord)[0])
        delta = np.ascontiguousarray(read_delta(reply.content, model))
        if job.privacy.unit == "client" and not job.privacy.central:
            delta = _noisy(job, delta, context)
        reply.content = with_delta(RecordDict(), delta)
        reply.content["metrics"] = MetricRecord({NUM_EXAMPLES: 1})
        return reply

    return mod


def _withheld(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Call the functions inside; say nothing about how they failed."""
    try:
        return call_next(message, context)
    except Exception as error:  # noqa: BLE001  # whatever it is, it may tell of data
        kind = type(error).__name__
    # Outside the handler, so that the error has no context to be printed.
    log(ERROR, "training failed (%s); what it says is withheld", kind)
    raise WithheldError("training failed; the reason stays on the node")


def _noisy(job: Job, delta: Float32, context: Context) -> Float32:
    """Return the update clipped and noised, if the budget allows another one."""
    plan = planned(job, 1, len(delta))
    done = _charge(job, plan, context)
    source = Source()
    if job.privacy.insecure:
        node = str(context.node_config.get("partition-id", context.node_id))
        source = Source.insecure(derive_seed(job.run.seed, "privacy", node, done))
    on = lattice_for(plan.release, plan.lattice_clip, len(delta))
    integers = clip(delta, on).integers
    integers += draw(plan.release, on.units, len(delta), source)
    return from_lattice(integers, on)


def _count_round(job: Job, context: Context) -> None:
    """Count a round of DP-SGD before it is trained, also one that is asked again.

    The noise of every step was planned for ``train.rounds``: another number later
    would not fit to it.
    """
    record = context.state.get(STATE)
    planned_for, done = job.train.rounds, 0
    if isinstance(record, ConfigRecord):
        planned_for, done = (int(x) for x in json.loads(str(record[ROUNDS])))
    if planned_for != job.train.rounds:
        raise WithheldError(f"the noise was planned for {planned_for} rounds")
    if done >= planned_for:
        raise WithheldError(f"the privacy budget is spent after {done} rounds")
    context.state[STATE] = ConfigRecord({ROUNDS: json.dumps([planned_for, done + 1])})


def _charge(job: Job, plan: Plan, context: Context) -> int:
    """Count one release before it is made; return how many were made before.

    A run that was continued with more rounds has other noise than before, so what
    matters is the sum: the ledger of all releases, not their number.
    """
    record = context.state.get(STATE)
    made = json.loads(str(record[RELEASES])) if isinstance(record, ConfigRecord) else []
    done = sum(int(count) for _, count in made)
    found = {Release.from_dict(values): count for values, count in made}
    fits = (
        done < plan.rounds if set(found) <= {plan.release} else _fits(job, plan, found)
    )
    if not fits:
        raise WithheldError(f"the privacy budget is spent after {done} releases")
    found[plan.release] = found.get(plan.release, 0) + 1
    text = json.dumps([[release.as_dict(), n] for release, n in found.items()])
    context.state[STATE] = ConfigRecord({RELEASES: text})
    return done


def _fits(job: Job, plan: Plan, made: Mapping[Release, int]) -> bool:
    """Return whether one more release fits beside others, with other noise."""
    ledger = plan.ledger(job)
    try:
        for release, count in [*made.items(), (plan.release, 1)]:
            ledger.charge(release, count)
    except ValueError:  # beyond the budget, or of another relation
        return False
    return True
