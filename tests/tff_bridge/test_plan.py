"""A plan is read whole and right, or refused with a reason."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tff_bridge import archive
from tff_bridge.manifest import MAX_MANIFEST
from tff_bridge.plan import Plan, read_plan
from truststram.errors import ProtocolError

from .plans import BREAST_CANCER
from .protobuf import function, graph, node

DATA = BREAST_CANCER.read_bytes()
PLAN = read_plan(DATA)


def code(call, *arguments, **options) -> str:
    with pytest.raises(ProtocolError) as error:
        call(*arguments, **options)
    return error.value.code


def remade(**changes) -> Plan:
    """Return the plan with some parts replaced, hashes and all."""
    parts = {
        name: getattr(PLAN, name)
        for name in ("job", "built_with", "programs", "weights", "privacy")
    }
    return Plan.of(**{**parts, **changes})


def with_graph(piece: str, data: bytes) -> dict:
    """Return the programs with another graph in training."""
    train = PLAN.programs["train"]
    pieces = {
        **train.pieces,
        piece: dataclasses.replace(train.pieces[piece], graph=data),
    }
    return {**PLAN.programs, "train": dataclasses.replace(train, pieces=pieces)}


def files() -> dict[str, bytes]:
    return archive.unpack(DATA)


def zipped(content: dict[str, bytes], compression=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, data in content.items():
            made.writestr(name, data)
    return buffer.getvalue()


def test_the_committed_plan_is_small_and_says_what_it_is():
    assert len(DATA) <= 100_000
    assert list(PLAN.programs) == ["train", "evaluate"]
    assert PLAN.parameters == {"weight": (2, 30), "bias": (2,)}
    assert PLAN.job["tff.algorithm"] == "fed-avg"
    assert PLAN.built_with["tensorflow-federated"] == "0.87.0"
    train = PLAN.programs["train"]
    roles = ["metric", "metric", "metric", "update", "update", "weight"]
    assert [leaf.role for leaf in train.sent] == roles
    assert {leaf.slot for leaf in train.sent} == {"accumulate"}
    assert train.additive
    assert [train.state[i].shape for i in train.parameters] == [(2, 30), (2,)]
    assert {leaf.role for leaf in PLAN.programs["evaluate"].sent} == {"metric"}
    assert train.pieces["work"].inputs[0].is_dataset


def test_writing_and_reading_give_the_same_plan(tmp_path):
    assert PLAN.to_bytes() == DATA == remade().to_bytes()
    PLAN.write(tmp_path / "a.tffplan")
    again = read_plan(tmp_path / "a.tffplan", PLAN.sha256)
    assert again.sha256 == PLAN.sha256
    assert again.programs == PLAN.programs
    np.testing.assert_array_equal(again.weights["weight"], PLAN.weights["weight"])


def test_the_hash_is_that_of_the_content_not_of_the_archive():
    stored = zipped(files(), zipfile.ZIP_STORED)
    assert read_plan(stored, PLAN.sha256).sha256 == PLAN.sha256
    assert code(read_plan, DATA, "0" * 64) == "plan-hash"
    changed = remade(job={**PLAN.job, "train.lr": 0.2})
    assert changed.sha256 != PLAN.sha256
    assert code(read_plan, changed.to_bytes(), PLAN.sha256) == "plan-hash"


@pytest.mark.parametrize(
    "op",
    [
        *("ReadFile", "WriteFile", "MatchingFiles", "SaveV2", "RestoreV2"),
        *("TextLineDataset", "TFRecordDataset", "CacheDataset", "CacheDatasetV2"),
        *("GeneratorDataset", "PyFunc", "PyFuncStateless", "EagerPyFunc"),
        *("PrintV2", "Print", "WriteSummary", "DebugIdentityV2", "DecodePng"),
        *("_Send", "_Recv", "CollectiveReduceV2", "RegisterDataset", "XlaLaunch"),
        *("VarHandleOp", "HashTableV2", "LoadAllTPUEmbeddingParameters", "RpcCall"),
        *("AssetFiles>MyOwnOp", "readfile", "ADD"),
        # What they return may be memory of the process that was never written.
        *("Empty", "DepthwiseConv2dNativeBackpropFilter"),
        "DepthwiseConv2dNativeBackpropInput",
    ],
)
def test_operators_that_reach_outside_are_refused_everywhere(op):
    outside = graph(node("Identity"), node(op))
    inside = graph(node("Identity"), functions=(function("__f_1", node(op)),))
    for data in (outside, inside):
        assert code(remade, programs=with_graph("work", data)) == "plan-ops"
        assert code(remade, programs=with_graph("init", data)) == "plan-ops"


def test_a_graph_that_the_manifest_does_not_know_is_refused():
    content = files()
    content["train/work.pb"] = content["evaluate/work.pb"]
    assert code(read_plan, zipped(content)) == "plan-file"
    assert code(read_plan, zipped({**files(), "train/more.pb": b""})) == "plan-file"
    assert code(read_plan, zipped({**files(), "../../etc/passwd": b""})) == "plan-file"
    content = files()
    del content["train/merge.pb"]
    assert code(read_plan, zipped(content)) == "plan-file"


def test_archives_are_bounded_before_they_are_unpacked(monkeypatch, tmp_path):
    assert code(read_plan, b"") == "plan-archive"
    assert code(read_plan, b"PK\x05\x06" + bytes(18)) == "plan-manifest"
    assert code(read_plan, DATA[:-30]) == "plan-archive"
    bomb = zipped({**files(), "train/work.pb": bytes(64 << 20)})
    assert len(bomb) < 1 << 20
    # Nothing is inflated: not one of the zeros is ever read.
    monkeypatch.setattr(archive, "_content", None)
    assert code(read_plan, bomb) == "plan-size"
    assert code(read_plan, zipped({str(i): b"" for i in range(65)})) == "plan-size"
    monkeypatch.setattr(archive, "MAX_FILE", 100)
    assert code(read_plan, DATA) == "plan-size"
    (tmp_path / "big").write_bytes(bytes(101))
    assert code(read_plan, tmp_path / "big") == "plan-size"


def test_a_long_directory_is_never_parsed(monkeypatch):
    monkeypatch.setattr(zipfile, "ZipFile", None)
    record = struct.Struct("<4s4H2LH")
    for entries, size, more, expected in (
        (65, 100, b"", "plan-size"),
        (64, (1 << 16) + 1, b"", "plan-size"),
        (1, 100, b"comment", "plan-archive"),
    ):
        end = record.pack(b"PK\5\6", 0, 0, entries, entries, size, 0, len(more))
        assert code(archive.unpack, bytes(1000) + end + more) == expected
    locator = b"PK\6\7" + bytes(16)  # zip64: its own record has the sizes
    end = record.pack(b"PK\5\6", 0, 0, 1, 1, 100, 0, 0)
    assert code(archive.unpack, bytes(1000) + locator + end) == "plan-archive"


def test_unusual_archives_are_refused(tmp_path):
    twice = zipped({**files(), "plan.jsoX": b"{}"}).replace(b"plan.jsoX", b"plan.json")
    assert code(read_plan, twice) == "plan-archive"
    assert code(read_plan, zipped(files(), zipfile.ZIP_LZMA)) == "plan-archive"
    os.mkfifo(tmp_path / "pipe")
    keep_open = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    assert code(read_plan, tmp_path / "pipe") == "plan-archive"
    os.close(keep_open)


GONE = object()
TRAIN = ("programs", "train")
SENT = (*TRAIN, "pieces", "work", "outputs", 0)  # a float32 scalar
COUNT = (*SENT[:-1], 1)  # an int64 scalar
WRONG = [
    ((), ["not", "an", "object"], "manifest"),
    (("version",), 2, "manifest"),
    (("format",), "zip", "manifest"),
    (("extra",), 1, "manifest"),
    (("job",), "x", "manifest"),
    (("job",), {}, "manifest"),
    (("job", "task.name"), GONE, "manifest"),
    (("job", "task.name"), ["x"], "manifest"),
    (("job", "task.name"), "\x1b[2K", "manifest"),
    (("job", "x\ny"), 1, "manifest"),
    (("job", "server.lr"), "1", "manifest"),
    (("job", "server.lr"), True, "manifest"),
    (("job", "train.lr"), float("inf"), "manifest"),
    (("job", "server.optimizer"), GONE, "manifest"),
    (("job", "tff.weighting"), "secret", "manifest"),
    (("job", "train.local-epochs"), 0, "manifest"),
    (("job", "train.batch-size"), 2.0, "manifest"),
    (("job", "tff.computation"), 3, "manifest"),
    (("built_with",), {"a\rb": "1"}, "manifest"),
    (("files", "a\x07"), [1, "0" * 64], "manifest"),
    (("privacy",), 3, "manifest"),
    (("built_with",), {"tf": 2}, "manifest"),
    (("files",), {}, "file"),
    (("files", "train/work.pb"), [1], "manifest"),
    (("files", "train/work.pb", 0), 1, "file"),
    (("parameters", "weight"), [2, 31], "pieces"),
    (("parameters", "weight"), [1 << 20, 1 << 20], "size"),
    (("programs",), {}, "manifest"),
    (("programs",), [], "manifest"),
    (("programs", "other"), {}, "manifest"),
    ((*TRAIN, "pieces", "zero"), GONE, "manifest"),
    ((*TRAIN, "data"), 0, "manifest"),
    ((*TRAIN, "data"), 2, "pieces"),
    ((*TRAIN, "data"), 1.0, "manifest"),
    ((*TRAIN, "additive"), 1, "manifest"),
    ((*TRAIN, "parameters"), [0], "pieces"),
    ((*TRAIN, "parameters"), [1, 0], "pieces"),
    ((*TRAIN, "parameters"), [0, 99], "pieces"),
    ((*TRAIN, "parameters"), list(range(20_001)), "size"),
    ((*SENT, "dtype"), "object", "manifest"),
    ((*SENT, "dtype"), "dataset", "manifest"),
    ((*SENT, "dtype"), "float64", "pieces"),
    ((*SENT, "shape"), [-1], "manifest"),
    ((*SENT, "shape"), [True], "manifest"),
    ((*SENT, "shape"), [None], "manifest"),
    ((*SENT, "shape"), [3], "pieces"),
    ((*SENT, "shape"), [1 << 30], "manifest"),
    ((*SENT, "shape"), [1 << 14, 1 << 14], "size"),
    ((*SENT, "shape"), [1] * 17, "size"),
    ((*SENT, "tensor"), "no-number", "manifest"),
    ((*SENT, "tensor"), "a:0;b:0", "manifest"),
    ((*SENT, "path"), "x" * 3000, "manifest"),
    ((*SENT, "path"), "a\x1b[1A", "manifest"),
    ((*SENT, "path"), "a\u202eb", "manifest"),
    ((*SENT, "role"), "boss", "manifest"),
    ((*SENT, "role"), GONE, "manifest"),
    ((*SENT, "slot"), "bitwidth", "manifest"),
    ((*COUNT, "slot"), "elsewhere", "manifest"),
    ((*COUNT, "slot"), "bitwidth", "manifest"),
    ((*COUNT, "limit"), 8, "manifest"),
]


@pytest.mark.parametrize(
    ("place", "value", "expected"), WRONG, ids=map(str, range(len(WRONG)))
)
def test_wrong_manifests_are_refused(place, value, expected):
    holder = manifest = {"": json.loads(files()["plan.json"])}
    *way, last = "", *place
    for key in way:
        holder = holder[key]
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value
    changed = json.dumps(manifest[""]).encode()
    data = zipped({**files(), "plan.json": changed})
    assert code(read_plan, data) == f"plan-{expected}"


def with_manifest(change) -> bytes:
    """Return the plan's file with a changed manifest."""
    manifest = json.loads(files()["plan.json"])
    change(manifest)
    return zipped({**files(), "plan.json": json.dumps(manifest).encode()})


def test_manifests_that_are_no_json_are_refused():
    for text, expected in (
        (b"", "plan-manifest"),
        (b"\xff", "plan-manifest"),
        (b"[" * 100_000, "plan-manifest"),
        (b'{"a": NaN}', "plan-manifest"),
        (b" " * (MAX_MANIFEST + 1), "plan-size"),
    ):
        assert code(read_plan, zipped({**files(), "plan.json": text})) == expected


def test_pieces_must_fit_each_other():
    for piece in PLAN.programs["train"].pieces:
        for side in ("inputs", "outputs"):
            # Of what `update` returns, metrics come last, which nothing takes.
            first = (piece, side) == ("update", "outputs")

            def cut(manifest, piece=piece, side=side, at=0 if first else -1):
                del manifest["programs"]["train"]["pieces"][piece][side][at]

            if getattr(PLAN.programs["train"].pieces[piece], side):
                assert code(read_plan, with_manifest(cut)) == "plan-pieces", piece


def test_weights_must_be_finite_and_fit():
    for name, value in (
        ("weight", np.full((2, 30), np.nan, np.float32)),
        ("bias", np.array([1, np.inf], np.float32)),
    ):
        assert code(remade, weights={**PLAN.weights, name: value}) == "plan-weights"
    small = {**PLAN.weights, "weight": np.zeros((2, 3), np.float32)}
    assert code(remade, weights=small) == "plan-pieces"


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda b: DATA[:400] + b))
def test_no_bytes_raise_anything_else(data):
    code(read_plan, data)


@given(st.data())
def test_no_damage_goes_unnoticed_or_raises_anything_else(data):
    changed = bytearray(DATA)
    at = data.draw(st.integers(0, len(DATA) - 1))
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        plan = read_plan(bytes(changed))
    except ProtocolError:
        return
    # What is left is damage to the archive's own notes (dates, rights).
    assert plan.sha256 == PLAN.sha256
