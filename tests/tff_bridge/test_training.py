"""Which plans are rounds of ours; the others say why not and what to do."""

from __future__ import annotations

import pytest

from tests.tff_bridge.numpy_plan import SHAPES, leaf, plan_of, sent
from tff_bridge.capabilities import CAPABILITIES, check, described, reasons_against
from tff_bridge.torch_silo import check_torch
from tff_bridge.training import Training
from truststram.errors import ConfigError
from truststram.job import Job

COUNT = leaf(role="aggregator")
SEALED = [
    leaf(shape, "int64", role="update", slot="bitwidth", limit=2**32)
    for shape in SHAPES.values()
]
PARAMETERS = [leaf(shape) for shape in SHAPES.values()]
NOISE = {"mechanism": "gaussian", "noise-multiplier": 1.0, "clip": 1.0}


def test_the_parts_of_a_plan():
    training = Training.of(plan_of())
    layout = training.layout
    assert (layout.update, layout.weights, layout.sums) == ((2, 3), (4,), (0, 1))
    assert (layout.size, training.epochs, training.batch_size) == (21, 2, 8)
    assert not training.counts
    assert Training.of(plan_of(more=[COUNT])).counts


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "evaluate"}, "has no training, only evaluate"),
        ({"privacy": NOISE}, "not in our ledger.*privacy.mechanism"),
        ({"leaves": [*sent()[:2], *SEALED]}, "a part in clear"),
        ({"leaves": [leaf((3,), "uint8", role="encoded")]}, "compression.codec"),
        ({"leaves": sent()[:4]}, "an update of the model, weighted"),
        ({"leaves": [*sent()[2:3], *sent()[4:]]}, "an update of the model"),
        ({"more": [leaf((65,), role="metric")]}, "more than 64 numbers"),
        ({"spec": {"train.local-epochs": 1001}}, "more than 1000 times"),
        ({"prepared": [leaf((5,)), *PARAMETERS]}, "send the model to the silos"),
        ({"prepared": [*PARAMETERS, leaf((), "string")]}, "texts or arrays without"),
    ],
)
def test_a_plan_that_is_no_round_of_ours_says_why(options, reason):
    with pytest.raises(ConfigError, match=reason):
        Training.of(plan_of(**options))


RUN = {"task.name": "tiny", "tff.plan": "x"}


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"task.name": "digits"}, {}, "the plan was compiled for tiny"),
        ({"train.local-epochs": 3}, {}, "train.local-epochs = 3: .* compiled with 2"),
        ({"train.lr": 0.2}, {}, "train.lr = 0.2"),
        ({"tff.mixed": True}, {}, "train.batch-size = 16: .* compiled with 8"),
        ({"robust.rule": "median"}, {"more": [COUNT]}, "counts that a liar sends"),
        ({"privacy.mechanism": "gaussian"}, {"more": [COUNT]}, "not noised"),
        ({"secure.scheme": "ckks"}, {"more": [COUNT]}, "in clear"),
        ({"tff.mixed": True}, {"more": [COUNT]}, "torch silos do not count"),
    ],
)
def test_a_job_that_a_plan_does_not_fit_is_refused(changes, options, reason):
    with pytest.raises(ConfigError, match=reason):
        check(plan_of(**options), Job.of({**RUN, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.local-epochs": 2, "train.batch-size": 8},
        {"tff.mixed": True, "train.batch-size": 8},
        {"robust.rule": "wfagg"},
        {"privacy.mechanism": "gaussian"},
    ],
)
def test_a_job_that_a_plan_fits_is_accepted(changes):
    check(plan_of(), Job.of({**RUN, **changes}))


@pytest.mark.parametrize(
    ("spec", "job", "reason"),
    [
        ({}, {"tff.mixed": False}, "tff.mixed = false"),
        ({"tff.algorithm": "fed-prox"}, {}, "only fed-avg"),
        ({"tff.weighting": "uniform"}, {}, "only fed-avg with weighting examples"),
        ({"train.lr": 0.2}, {}, "train.lr = 0.1: the plan has 0.2"),
        ({"train.momentum": 0.9}, {}, "train.momentum"),
    ],
)
def test_torch_stands_in_for_plain_local_sgd_only(spec, job, reason):
    fits = {**RUN, "tff.mixed": True, "train.batch-size": 8}
    check_torch(Training.of(plan_of()), Job.of(fits))
    with pytest.raises(ConfigError, match=reason):
        check_torch(Training.of(plan_of(spec)), Job.of({**fits, **job}))


def test_the_event_of_a_plan_says_how_silos_weigh():
    plan = plan_of()
    found = described(plan, Job.of(RUN))
    assert (found["plan"], found["weights"]) == (plan.sha256, "examples")
    for layer in ({"robust.rule": "wfagg"}, {"secure.scheme": "bfv"}):
        assert described(plan, Job.of({**RUN, **layer}))["weights"] == "equal"


def test_the_table_and_the_plans_agree():
    """What the table says runs, runs; what it says does not is refused."""
    runs = {(c.kind, c.name): c.runs for c in CAPABILITIES}
    for aggregator, options in {
        "mean": {},
        "robust": {"more": [COUNT]},
        "compression": {"leaves": [leaf((3,), "uint8", role="encoded")]},
        "secure": {"leaves": SEALED},
        "dp": {"privacy": NOISE},
    }.items():
        try:
            Training.of(plan_of({"tff.aggregator": aggregator}, **options))
        except ConfigError:
            assert not runs["aggregator", aggregator]
        else:
            assert runs["aggregator", aggregator]
    example = {"privacy.mechanism": "dp-sgd", "privacy.unit": "example"}
    assert reasons_against(Job.of(example))
    assert not reasons_against(Job())
