"""Which settings do not go together with differential privacy, and why."""

from __future__ import annotations

from truststram.job import Job

from ..refusal import Refusal

__all__ = ["PRIVACY"]


def _is_local(job: Job) -> bool:
    return job.privacy.on and not job.privacy.central


def _clients_evaluate(job: Job) -> bool:
    return job.round.evaluate in ("clients", "both")


def _only_relation(job: Job) -> str:
    """Return the relation of noise that nodes add."""
    return "replace" if job.privacy.unit == "client" else "add-remove"


PRIVACY: tuple[Refusal, ...] = (
    Refusal(
        lambda job: job.privacy.central and job.robust.rule != "mean",
        "robust.rule with client-level privacy by the server",
        "one client changes what others contribute, so the noise would not cover it",
        "robust.rule = mean, or privacy.unit = example with any rule",
    ),
    Refusal(
        lambda job: (
            _is_local(job)
            and not job.privacy.distributed
            and job.privacy.unit == "client"
            and job.robust.rule != "mean"
        ),
        "robust.rule with client-level privacy by the nodes",
        "the noise is many times as long as an update and blinds every filter "
        "(truststram privacy plan prints how many times)",
        "robust.rule = mean, or privacy.unit = example with any rule",
    ),
    Refusal(
        lambda job: job.privacy.central and job.anomaly.enabled == "on",
        "anomaly.enabled = on with client-level privacy by the server",
        "who is left out would depend on others' data, outside the account",
        "anomaly.enabled = auto or off",
    ),
    Refusal(
        lambda job: job.privacy.central and job.round.quorum < 1,
        "round.quorum below 1 with privacy by the server",
        "the first answers end a phase, so that a node more pushes another one out: "
        "sums differ by two clips, where the noise covers one",
        "round.quorum = 1 (a lower round.deadline bounds the wait), or privacy.trust = "
        "local",
    ),
    Refusal(
        lambda job: (
            job.privacy.on
            and _clients_evaluate(job)
            and job.privacy.evaluate_epsilon == 0
        ),
        "round.evaluate = clients with privacy",
        "accuracies on private data are releases that nobody accounted for",
        "privacy.evaluate-epsilon for a part of the budget, or round.evaluate = auto "
        "(the server's test data, which must be public) or none",
    ),
    Refusal(
        lambda job: job.privacy.evaluate_epsilon > 0 and not _clients_evaluate(job),
        "privacy.evaluate-epsilon without evaluation by the nodes",
        "a part of the budget would pay for nothing",
        "round.evaluate = clients or both, or privacy.evaluate-epsilon = 0",
    ),
    Refusal(
        lambda job: (
            job.privacy.evaluate_every > 0 and job.privacy.evaluate_epsilon == 0
        ),
        "privacy.evaluate-every without privacy.evaluate-epsilon",
        "nodes tell no accuracy",
        "privacy.evaluate-epsilon above 0, or privacy.evaluate-every = 0",
    ),
    Refusal(
        lambda job: job.privacy.evaluate_epsilon >= job.privacy.epsilon,
        "privacy.evaluate-epsilon of the whole privacy.epsilon",
        "it is a part of that, and nothing would be left for training",
        "a smaller privacy.evaluate-epsilon, or a larger privacy.epsilon",
    ),
    Refusal(
        lambda job: (
            job.privacy.evaluate_epsilon > 0
            and job.round.evaluate == "clients"
            and job.run.patience > 0
        ),
        "run.patience with privacy.evaluate-epsilon",
        "most rounds are not evaluated, and a run that ends early would not reach the "
        "evaluation of its last model",
        "run.patience = 0, or round.evaluate = both",
    ),
    Refusal(
        lambda job: job.privacy.schedule != "constant" and not job.privacy.central,
        "privacy.schedule with noise by the nodes",
        "each node plans its own noise once, for all rounds",
        "privacy.schedule = constant, or privacy.trust = central with privacy.unit = "
        "client",
    ),
    Refusal(
        lambda job: (
            job.privacy.schedule == "on-plateau"
            and job.round.evaluate in ("clients", "none")
        ),
        "privacy.schedule = on-plateau without evaluation by the server",
        "the noise follows what the server's public test data say of each model",
        "round.evaluate = auto or server, or privacy.schedule = increasing",
    ),
    Refusal(
        lambda job: (
            job.privacy.schedule == "on-plateau" and job.privacy.evaluate_epsilon > 0
        ),
        "privacy.schedule = on-plateau with privacy.evaluate-epsilon",
        "a schedule that is made on the way does not know what to keep for them",
        "privacy.schedule = increasing, or round.evaluate = auto",
    ),
    Refusal(
        lambda job: job.privacy.sampling == "fixed" and not job.privacy.central,
        "privacy.sampling = fixed with noise by the nodes",
        "the server sees who answers, so that no secret cohort protects anybody",
        "privacy.sampling = poisson or none (nodes claim nothing for either)",
    ),
    Refusal(
        lambda job: (
            job.privacy.sampling == "fixed" and job.privacy.relation == "add-remove"
        ),
        "privacy.sampling = fixed with privacy.relation = add-remove",
        "a node more would push another one out of the cohort, so that two differ",
        "privacy.relation = replace or auto, or privacy.sampling = poisson",
    ),
    Refusal(
        lambda job: job.privacy.on and job.run.checkpoint_every != 1,
        "run.checkpoint-every above 1 with privacy",
        "a round that was told but not recorded would be released twice, with noise "
        "that is charged once",
        "run.checkpoint-every = 1",
    ),
    Refusal(
        lambda job: (
            job.privacy.on
            and (job.privacy.unit == "example") != (job.privacy.mechanism == "dp-sgd")
            and not (job.privacy.unit == "example" and job.privacy.mechanism == "auto")
        ),
        "privacy.mechanism with another privacy.unit",
        "dp-sgd protects single examples, the other mechanisms whole clients",
        "privacy.mechanism = dp-sgd with privacy.unit = example, or another mechanism "
        "with privacy.unit = client",
    ),
    Refusal(
        lambda job: job.privacy.unit == "example" and job.privacy.trust == "central",
        "privacy.unit = example with privacy.trust = central",
        "the noise is added to gradients, which the server never sees",
        "privacy.trust = local or auto",
    ),
    Refusal(
        lambda job: _is_local(job) and job.privacy.neighbours != _only_relation(job),
        "privacy.relation with noise by the nodes",
        "a node that answers shows that it takes part (clients are replaced); batches "
        "are drawn with a random size (examples are added or removed)",
        "privacy.relation = auto",
    ),
    Refusal(
        lambda job: (
            job.privacy.central
            and job.privacy.neighbours == "replace"
            and job.privacy.sampling == "poisson"
            and job.round.fraction < 1
        ),
        "privacy.relation = replace with privacy.sampling = poisson",
        "the size of the cohort depends on who is registered",
        "privacy.relation = add-remove, or privacy.sampling = fixed or none",
    ),
    Refusal(
        lambda job: (
            job.privacy.clip_quantile > 0
            and not (
                job.privacy.central and job.privacy.mechanism in ("auto", "gaussian")
            )
        ),
        "privacy.clip-quantile without Gaussian noise by the server",
        "the count of short updates shares the budget of a Gaussian release",
        "privacy.mechanism = gaussian with privacy.trust = central, or "
        "privacy.clip-quantile = 0",
    ),
)
