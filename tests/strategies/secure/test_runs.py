"""Whole runs: encrypted training is plaintext training, but for the grid."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from strategies import stack
from strategies.base import walk
from strategies.secure.he import Cipher
from strategies.secure.layer import SecureSum
from tests.support.runs import model_bytes, run
from truststram import events
from truststram.engine import run_local
from truststram.job import Job
from truststram.result import RunResult

BFV = {"secure.scheme": "bfv", "train.rounds": 3}
SCHEMES = {
    "bfv": BFV,
    "ckks": {**BFV, "secure.scheme": "ckks"},
    "decryptor": {**BFV, "secure.key-holder": "decryptor"},
}


def log(folder, run_id, kind):
    found = events.read(folder / run_id / "events.jsonl")
    return [event for event in found if event["kind"] == kind]


@pytest.mark.parametrize("changes", SCHEMES.values(), ids=SCHEMES)
def test_an_encrypted_run_is_the_quantised_one_bit_for_bit(
    tmp_path, changes, monkeypatch
):
    run(tmp_path, "encrypted", changes)

    def decrypted(self, body, n, count):
        return np.frombuffer(body, np.int64)

    def added(self, bodies, n):
        return sum(np.frombuffer(body, np.int64) for body in bodies).tobytes()

    monkeypatch.setattr(Cipher, "encrypt", lambda self, q: q.astype("i8").tobytes())
    monkeypatch.setattr(Cipher, "add", added)
    monkeypatch.setattr(Cipher, "check", lambda self, body, n: None)
    monkeypatch.setattr(Cipher, "decrypt", decrypted)
    run(tmp_path, "quantised", changes)
    assert model_bytes(tmp_path, "encrypted") == model_bytes(tmp_path, "quantised")


def test_digits_reach_the_plaintext_accuracy(tmp_path):
    # Equal shares, so that plaintext FedAvg counts all nodes alike, too.
    common = {
        "train.rounds": 5,
        "data.partitioner": "iid",
        "run.dir": str(tmp_path),
        "train.local-epochs": 1,
    }
    found = {}
    for name in ("none", "bfv", "ckks"):
        job = Job.of({**common, "secure.scheme": name, "run.id": name})
        run_local(job, 4)
        last = RunResult.read(tmp_path / name).rounds[-1]
        found[name] = last.metrics["accuracy"]
    assert found["none"] > 0.85
    assert found["bfv"] == pytest.approx(found["none"], abs=0.01)
    assert found["ckks"] == pytest.approx(found["none"], abs=0.01)


def test_a_resumed_run_is_the_whole_one(tmp_path):
    run(tmp_path, "whole", BFV)
    run(tmp_path, "parts", {**BFV, "train.rounds": 2})
    run(tmp_path, "parts", {**BFV, "run.resume": "parts"})
    assert model_bytes(tmp_path, "parts") == model_bytes(tmp_path, "whole")
    assert len(log(tmp_path, "parts", "secure-plan")) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"compression.codec": "randk", "compression.ratio": 0.5},
        {"compression.codec": "topk-shared", "compression.ratio": 0.5},
        {"privacy.mechanism": "gaussian", "privacy.trust": "local"},
        {"server.optimizer": "adam"},
        {"adversary.kind": "label-flip", "adversary.fraction": 0.2},
        {"round.fraction": 0.8, "round.quorum": 0.8},
        {
            "secure.group-size": 3,
            "robust.rule": "median",
            "round.min-nodes": 9,
            "robust.f": 1,
        },
    ],
    ids=lambda changes: ", ".join(map(str, changes.values())),
)
def test_what_goes_with_secure_sums(tmp_path, changes):
    nodes = changes.get("round.min-nodes", 5)
    result = run(tmp_path, "run", {**BFV, **changes}, nodes=nodes)
    assert result.status == "completed"
    assert not any(report.skipped for report in result.rounds)
    assert log(tmp_path, "run", "reply-dropped") == []
    sums = log(tmp_path, "run", "secure-sum")
    assert len(sums) == 3 * (nodes // 3 if "secure.group-size" in changes else 1)


def test_nothing_in_the_runs_folder_is_secret_or_of_one_node(tmp_path):
    from strategies.secure import automatic

    run(tmp_path, "run", BFV)
    made = list(automatic._RUNS.values())[-1]
    key = made.key.secret
    secrets = [made.secret, *(key[i : i + 32] for i in range(200, len(key) - 32, 997))]
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(spelled(secret, data) for secret in secrets), path
    # The search finds what it is for.
    secret = secrets[1]
    for text in (b"0" + secret, secret.hex().encode(), secret.hex().upper().encode()):
        assert spelled(secret, text)
    for i in range(3):
        assert spelled(secret, base64.b64encode(b"." * i + secret + b"."))
    told = log(tmp_path, "run", "secure-sum")
    names = {name for event in told for name in event}
    assert names - CHAIN == {"round", "clients", "clipped"}


# Fields that every event has.
CHAIN = {"kind", "time", "seq", "prev", "hash"}


def spelled(secret: bytes, data: bytes) -> bool:
    """Return whether ``data`` has a secret, raw, in hexadecimal or in base64."""
    if secret in data or secret.hex().encode() in data.lower():
        return True
    # In base64 it may begin at each of three places of a group of four digits.
    return any(
        base64.b64encode(secret[i : i + 3 * ((len(secret) - i) // 3)]) in data
        for i in range(3)
    )


def test_the_layer_is_outermost_on_both_sides():
    job = Job.of({"secure.scheme": "bfv", "compression.codec": "randk"})
    layers = list(walk(stack.build(job)))
    assert isinstance(layers[0], SecureSum)
    assert [type(layer).__name__ for layer in layers[1:3]] == ["Compression", "Guard"]
    assert stack.mods(job)[0].__module__ == "strategies.secure.mod"
