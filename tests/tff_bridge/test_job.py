"""A cross-silo job says what it is, or what is wrong with it."""

from __future__ import annotations

import dataclasses

import pytest

from tff_bridge.job import CrossSiloJob, PlanKeys, read_job
from truststram.errors import ConfigError

PROX = {"tff.algorithm": "fed-prox", "tff.proximal": 0.1}
DP = {"tff.aggregator": "dp", "tff.clients-per-round": 5}


def refused(config) -> str:
    with pytest.raises(ConfigError) as error:
        CrossSiloJob.of(config)
    return str(error.value)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(
        '[task]\nname = "breast-cancer"\n[train]\nlr = 1\nlocal-epochs = 3\n'
        '[tff]\nalgorithm = "fed-prox"\nproximal = 0.5\n'
    )
    job = read_job(path)
    assert job.base.task.name == "breast-cancer"
    assert (job.base.train.lr, job.base.train.local_epochs) == (1.0, 3)
    assert job.spec()["tff.proximal"] == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 3", "outside a table"),
        ("[tff", "not TOML"),
        ("\x00", "not TOML"),
        ("[[tff]]\na = 1", "outside a table"),
        ("[tff]\nalgorithm = 3", "expected a value of type str"),
        ("[tff]\nalgoritm = 'fed-avg'", "Did you mean tff.algorithm?"),
        ("[train]\nrounds = 3", "truststram run -c train.rounds"),
        ("[robust]\nrule = 'median'", "belongs to the run"),
        ("[train]\nlr = -1.0", "train.lr"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, words):
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_job(path)
    assert words in str(error.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "huge").write_bytes(b"#" * (1 << 20) + b"#")
    for name in ("missing", "binary", "huge"):
        with pytest.raises(ConfigError):
            read_job(tmp_path / name)


def test_usual_values_are_resolved_in_the_spec():
    spec = CrossSiloJob().spec()
    assert spec["server.lr"] == 1.0
    assert spec["tff.weighting"] == "examples"
    assert CrossSiloJob.of({"server.optimizer": "yogi"}).spec()["server.lr"] == 0.03
    assert CrossSiloJob.of(DP).spec()["tff.weighting"] == "uniform"
    one = CrossSiloJob.of({"tff.algorithm": "fed-sgd"}).spec()
    assert one["train.local-epochs"] == 1


def test_the_hash_is_that_of_the_computation():
    job = CrossSiloJob.of({"train.lr": 0.1})
    same = CrossSiloJob.of({"data.path": "/somewhere/else", "server.lr": 1.0})
    assert job.sha256 == same.sha256 == CrossSiloJob().sha256
    assert job.sha256 != CrossSiloJob.of({"train.lr": 0.2}).sha256
    assert job.sha256 != CrossSiloJob.of(PROX).sha256


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"tff.algorithm": "fed-nova"}, "expected one of fed-avg"),
        ({"tff.clip": 0.0, **DP}, "tff.clip = 0.0: expected > 0"),
        ({"tff.proximal": 0.1}, "algorithm fed-prox only"),
        ({"tff.algorithm": "fed-prox"}, "needs a strength > 0"),
        ({"tff.noise-multiplier": 1.0}, "aggregator dp only"),
        ({"tff.clip": 1.0}, "aggregator dp only"),
        ({"tff.zeroing": False}, "robust, compression and secure only"),
        ({"tff.input-dtype": "int64"}, "tff.input-shape only"),
        ({"tff.input-shape": "3xx"}, "expected sizes"),
        ({"tff.input-shape": "0x3"}, "expected sizes"),
        ({"tff.algorithm": "fed-sgd", "train.lr": 0.1}, "set server.lr"),
        ({"tff.algorithm": "fed-sgd", "train.local-epochs": 2}, "one gradient"),
        ({"tff.algorithm": "fed-sgd", "tff.weighting": "uniform"}, "by examples"),
        ({"tff.algorithm": "mime-lite", "tff.aggregator": "secure"}, "full gradients"),
        ({"tff.algorithm": "mime-lite", "tff.aggregator": "robust"}, "full gradients"),
        ({"tff.aggregator": "dp"}, "tff.clients-per-round"),
        ({**DP, "tff.weighting": "examples"}, "weights are data"),
        ({**DP, **PROX}, "needs fed-avg"),
        ({"server.optimizer": "adam", "server.momentum": 0.5}, "server.optimizer sgd"),
        ({"tff.computation": "a.py", "tff.algorithm": "fed-sgd"}, "no effect"),
        ({"privacy.epsilon": 3.0}, "belongs to the run"),
    ],
    ids=str,
)
def test_settings_without_effect_or_meaning_are_refused(config, words):
    assert words in refused(config)


def test_numbers_must_be_finite():
    for value in (float("nan"), float("inf")):
        assert "finite" in refused({**PROX, "tff.proximal": value})


def test_all_that_is_wrong_is_told_at_once():
    lines = refused({"tff.proximal": 0.1, "tff.clip": 2.0}).splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize(
    "config",
    [
        *(
            {"tff.aggregator": name}
            for name in ("mean", "robust", "compression", "secure")
        ),
        {**DP, "tff.noise-multiplier": 0.5, "tff.clip": 0.3},
        {"tff.algorithm": "mime-lite", "train.momentum": 0.9},
        {"tff.algorithm": "fed-sgd", "server.lr": 0.5, "tff.aggregator": "secure"},
        {**PROX, "tff.weighting": "uniform", "server.optimizer": "adam"},
        {"tff.computation": "mean.py", "train.batch-size": 8},
        {"tff.input-shape": "1x28x28", "tff.input-dtype": "int64"},
    ],
    ids=str,
)
def test_what_goes_together_is_accepted(config):
    assert CrossSiloJob.of(config).given == set(config)


def test_own_noise_is_described_for_the_ledger():
    assert CrossSiloJob().privacy is None
    assert CrossSiloJob.of({**DP, "tff.noise-multiplier": 0.5}).privacy == {
        "mechanism": "gaussian",
        "noise-multiplier": 0.5,
        "clip": 1.0,
        "clients-per-round": 5,
    }


def test_every_key_teaches():
    for key in dataclasses.fields(PlanKeys):
        assert len(key.metadata["help"]) > 20, key.name
