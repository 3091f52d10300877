"""Server half: what cannot be decoded is dropped and counted; nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from strategies.anomaly.layer import Anomaly
from strategies.compression import wire
from strategies.compression.codecs import make_codec
from strategies.compression.layer import Compression
from strategies.compression.messages import FRAME, RECORD, STEPS, Ask, framed, wrapped
from strategies.compression.mod import compression_mod
from strategies.compression.stores import ContextStore
from strategies.guard.layer import Guard
from strategies.mean.layer import WeightedMean
from strategies.mechanisms.layer import CentralDP
from strategies.update import Model, read_delta, with_delta
from tests.adversaries.replies import HOSTILE
from tests.support.federation import (
    config,
    grid_of,
    model,
    plus,
    reply_content,
    weights,
)
from truststram.errors import ProtocolError
from truststram.job import Job

SHAPES = {"w": (40, 30), "b": (16,)}
SIZE = 1216


def start_model(value=0.5):
    return model(value, SHAPES)


def target(partition):
    return np.random.default_rng(partition).standard_t(4, SIZE).astype(np.float32)


def app(mods=(compression_mod,), amount=target):
    """Clients that add a fixed vector to the model."""
    found = ClientApp(mods=list(mods))

    @found.train()
    def train(message: Message, context: Context) -> Message:
        assert set(message.content) == {"arrays", "config"}
        assert next(iter(message.content)) == "arrays"
        vector = amount(int(context.node_config["partition-id"]))
        arrays, place = {}, 0
        for name, array in message.content["arrays"].items():
            values = array.numpy()
            step = vector[place : place + values.size].reshape(values.shape)
            arrays[name] = Array((values + step).astype(np.float32))
            place += values.size
        return Message(reply_content(ArrayRecord(arrays), 10), reply_to=message)

    @found.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        value = float(weights(message.content["arrays"]).mean())
        record = MetricRecord({"loss": value, "num-examples": 10})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    return found


def made(inner=None, **options):
    layer = Compression(inner or Guard(WeightedMean()), **options)
    events = []
    for one in [layer, layer.inner]:
        one.emit = lambda kind, **data: events.append((kind, data))
    return layer, events


def round_of(layer, grid, number, arrays, change=lambda replies: replies):
    messages = list(layer.configure_train(number, arrays, config(), grid))
    # Strategies ask in random order.
    replies = grid.send_and_receive(messages)
    replies.sort(key=lambda reply: reply.metadata.src_node_id)
    replies = change(replies)
    return layer.aggregate_train(number, replies)[0] or arrays


def codes(events):
    return [data["code"] for kind, data in events if kind == "reply-dropped"]


CODECS = {
    "q8": ("q8", 0.04),
    "topk": ("topk", 1.0),
    "topk-q8": ("topk-q8", 1.0),
    "topk-shared": ("topk-shared", 1.0),
    "randk": ("randk", 1.0),
    "eden-1": ("eden-1", 1.0),
    "eden-2": ("eden-2", 0.4),
}


@pytest.mark.parametrize("inner", [lambda: Guard(WeightedMean()), FedAvg])
@pytest.mark.parametrize("codec", CODECS)
def test_what_arrives_is_what_the_codec_says(codec, inner):
    name, error = CODECS[codec]
    layer, events = made(inner(), codec=name, ratio=0.1)
    base = start_model()
    arrays = round_of(layer, grid_of(app(), 3), 1, base)
    moved = weights(arrays) - weights(base)
    mean = np.mean([target(p) for p in range(3)], axis=0)
    assert np.linalg.norm(moved - mean) <= error * np.linalg.norm(mean)
    assert np.linalg.norm(moved) > 0
    assert codes(events) == []
    [sizes] = [data for kind, data in events if kind == "compressed"]
    predicted = make_codec(name, 0.1).predicted_bytes(SIZE)
    for count in sizes["nodes"].values():  # metrics and names beside the frame
        assert predicted * 0.85 < count < predicted * 1.15 + 120
    assert sizes["saved_up"] > 3 * 0.5 * 4 * SIZE


@pytest.mark.parametrize("codec", ["topk", "topk-q8", "topk-shared", "randk"])
def test_feedback_sends_everything_in_time(codec):
    """Clients that always send the same vector: the mean step becomes that vector."""
    moved = {}
    for feedback in (True, False):
        layer, _ = made(codec=codec, ratio=0.1, error_feedback=feedback)
        grid, arrays = grid_of(app(), 2), start_model()
        for number in range(1, 26):
            arrays = round_of(layer, grid, number, arrays)
        moved[feedback] = (weights(arrays) - weights(start_model())) / 25
    mean = np.mean([target(p) for p in range(2)], axis=0)
    errors = {
        k: np.linalg.norm(v - mean) / np.linalg.norm(mean) for k, v in moved.items()
    }
    assert errors[True] < 0.65
    assert errors[False] > 1.2 * errors[True]


def test_unbiased_codecs_keep_nothing_on_the_node():
    layer, _ = made(codec="q8")
    grid = grid_of(app(), 2)
    round_of(layer, grid, 1, start_model())
    assert all(not grid.context(n).state for n in grid.get_node_ids())


def test_a_repeated_round_is_answered_with_the_same_bytes_without_training():
    layer, _ = made(codec="topk-q8")
    calls = []

    def counted(partition):
        calls.append(partition)
        return target(partition)

    grid = grid_of(app(amount=counted), 2)
    replies = []
    for _ in range(2):
        messages = list(layer.configure_train(1, start_model(), config(), grid))
        found = grid.send_and_receive(messages)
        replies.append(sorted(found, key=lambda r: r.metadata.src_node_id))
        layer.aggregate_train(1, [])
    one, two = ([dict(r.content) for r in found] for found in replies)
    assert [c[FRAME][FRAME].data for c in one] == [c[FRAME][FRAME].data for c in two]
    assert [c["metrics"] for c in one] == [c["metrics"] for c in two]
    assert [c[RECORD] for c in one] == [c[RECORD] for c in two]
    assert len(calls) == 2


def frame(values, codec="topk-q8", arrays=None):
    spec = Model(arrays or start_model()).spec
    values = np.full(spec.size, values, np.float32)
    rng = np.random.default_rng(0)
    name = wire.spec_hash(spec)
    return wire.pack(make_codec(codec, 0.1), values, spec_hash=name, rng=rng)


def with_frame(data, stype="truststram.frame", key=FRAME):
    array = Array("uint8", (len(data),), stype, data)
    return lambda content: RecordDict(
        {FRAME: ArrayRecord({key: array}), "metrics": content["metrics"]}
    )


def flipped(place):
    data = bytearray(frame(1.0))
    data[place] ^= 1
    return bytes(data)


HOSTILE_FRAMES = {
    "empty": (with_frame(b""), "frame-size"),
    "garbage": (with_frame(b"\x01" * 500), "frame-format"),
    "truncated": (with_frame(frame(1.0)[:-1]), "frame-size"),
    "extended": (with_frame(frame(1.0) + b"\0"), "frame-size"),
    "bit flip": (with_frame(flipped(-3)), "frame-checksum"),
    "another codec": (with_frame(frame(1.0, "q8")), "frame-codec"),
    "another model": (with_frame(frame(1.0, arrays=model(0.0))), "frame-model"),
    "numpy array": (with_frame(frame(1.0), stype="numpy.ndarray"), "frame-record"),
    "another key": (with_frame(frame(1.0), key="x"), "frame-record"),
    "64 MB of nothing": (with_frame(bytes(64 * 2**20)), "frame-format"),
}


@pytest.mark.parametrize("name", HOSTILE_FRAMES)
def test_a_hostile_frame_is_dropped_and_the_others_count(name):
    change, code = HOSTILE_FRAMES[name]
    layer, events = made(codec="topk-q8", ratio=1.0)

    def attack(replies):
        replies[1].content = change(replies[1].content)
        return replies

    base = start_model()
    arrays = round_of(layer, grid_of(app(), 3), 1, base, attack)
    assert codes(events) == [code]
    mean = np.mean([target(p) for p in (0, 2)], axis=0)
    moved = weights(arrays) - weights(base)
    assert np.linalg.norm(moved - mean) < 0.3 * np.linalg.norm(mean)


@pytest.mark.parametrize(
    "record",
    [
        {"seconds": -1.0, "error": float("nan"), "held": b"x"},
        {"seconds": "text", "missing": 1, "fresh": [1, 2], "error": 1e308},
        {"held": [b"a", b"b"], "surprise": b"\0" * 100},
    ],
)
def test_hostile_answers_change_nothing(record):
    expected = None
    for hostile in (False, True):
        layer, events = made(codec="topk-q8", downlink="q8")

        def change(replies, hostile=hostile):
            if hostile:
                replies[0].content[RECORD] = ConfigRecord(record)
            return replies

        grid = grid_of(app(), 3)
        arrays = round_of(layer, grid, 1, start_model(), change)
        arrays = round_of(layer, grid, 2, arrays)
        assert codes(events) == []
        expected = weights(arrays) if expected is None else expected
        np.testing.assert_array_equal(weights(arrays), expected)


def test_a_node_that_says_it_misses_the_model_is_left_out_once():
    layer, events = made(codec="topk-q8", downlink="q8")
    grid, arrays = grid_of(app(), 3), start_model()
    arrays = round_of(layer, grid, 1, arrays)
    node = grid.get_node_ids()[1]
    state = grid.context(node).state
    for name in [n for n in state if n.endswith("model")]:
        del state[name]
    arrays = round_of(layer, grid, 2, arrays)
    assert codes(events) == ["model-missing"]
    messages = list(layer.configure_train(3, arrays, config(), grid))
    whole = {m.metadata.dst_node_id for m in messages if "arrays" in m.content}
    assert whole == {node}
    replies = grid.send_and_receive(messages)
    layer.aggregate_train(3, replies)
    assert codes(events) == ["model-missing"]


@pytest.mark.parametrize("secret", [False, True])
def test_a_node_with_other_arithmetic_is_told_and_gets_whole_models(secret):
    """Its float32 sums are off: every model that it makes itself is another one."""

    def elsewhere(message, context, call_next):
        if STEPS in message.content and context.node_config["partition-id"] == 1:
            store = ContextStore(context, Ask.of(message.content).job)
            entry = store.load("model")
            values = np.frombuffer(entry.parts[0], np.float32) * np.float32(1.001)
            store.save("model", entry.about, [values.view(np.uint8).data])
        return compression_mod(message, context, call_next)

    layer, events = made(codec="q8", downlink="q8")
    layer.inner.secret_cohort = secret
    grid, arrays, whole = grid_of(app([elsewhere]), 3), start_model(), []
    node = grid.get_node_ids()[1]
    for number in range(1, 7):
        messages = list(layer.configure_train(number, arrays, config(), grid))
        for message in messages:
            if message.metadata.dst_node_id == node and "arrays" in message.content:
                whole.append(number)
        replies = grid.send_and_receive(messages)
        arrays = layer.aggregate_train(number, replies)[0]
    assert whole == [1, 3, 5, 6]
    assert codes(events) == ["model-missing"] * 2
    told = [data for kind, data in events if kind == "downlink-off"]
    assert told == ([] if secret else [{"round": 4, "node": layer.name_of(node)}])


@pytest.mark.parametrize("twice", [False, True])
def test_only_the_first_reply_of_a_node_that_was_asked_is_decoded(twice):
    layer, events = made(codec="q8")

    def change(replies):
        return [*replies, replies[0]] if twice else replies

    round_of(layer, grid_of(app(), 3), 1, start_model(), change)
    assert codes(events) == (["unknown-node"] if twice else [])


@pytest.mark.parametrize("downlink", ["none", "q8"])
def test_stock_clients_and_ours_together(downlink):
    """Clients without the mod get whole models and send whole models."""

    def sometimes(message, context, call_next):
        if context.node_config["partition-id"] == 1:
            content = RecordDict(
                {k: v for k, v in message.content.items() if k != RECORD}
            )
            assert "arrays" in content
            message.content = content
            return call_next(message, context)
        return compression_mod(message, context, call_next)

    layer, events = made(codec="q8", downlink=downlink)
    grid, base = grid_of(app([sometimes]), 3), start_model()
    arrays = base
    for number in (1, 2, 3):
        arrays = round_of(layer, grid, number, arrays)
    assert codes(events) == []
    moved = (weights(arrays) - weights(base)) / 3
    mean = np.mean([target(p) for p in range(3)], axis=0)
    assert np.linalg.norm(moved - mean) < 0.05 * np.linalg.norm(mean)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_plain_replies_are_the_guards_business(name):
    change, code = HOSTILE[name]
    layer, events = made(codec="q8")
    base = model(0.5)
    grid = grid_of(small_app(), 4)
    messages = list(layer.configure_train(1, base, config(), grid))
    replies = grid.send_and_receive(messages)
    replies[3].content = change(reply_content(plus(base, 1.0)))
    arrays, _ = layer.aggregate_train(1, replies)
    assert codes(events) == [code]
    np.testing.assert_allclose(weights(arrays), 1.5, rtol=0.02)


def small_app():
    found = ClientApp(mods=[compression_mod])

    @found.train()
    def train(message: Message, context: Context) -> Message:
        arrays = plus(message.content["arrays"], 1.0)
        return Message(reply_content(arrays), reply_to=message)

    return found


def test_bad_frames_are_evidence_for_the_anomaly_layer():
    layer, events = made(Anomaly(Guard(WeightedMean()), quarantine=9), codec="topk-q8")

    grid, arrays = grid_of(app(), 6), start_model()
    node = grid.get_node_ids()[1]

    def attack(replies):
        for reply in replies:
            if reply.metadata.src_node_id == node:
                reply.content = with_frame(b"junk")(reply.content)
        return replies

    for number in range(1, 13):
        arrays = round_of(layer, grid, number, arrays, attack)
    guilty = layer.name_of(node)
    told = [data for kind, data in events if kind == "incident"]
    assert guilty in {data["node"] for data in told}
    [first, *_] = [data for data in told if data["node"] == guilty]
    assert first["evidence"]["guard"]["code"] == "frame-size"
    left_out = [data["node"] for kind, data in events if kind == "node-quarantined"]
    assert left_out == [guilty]


def test_a_fault_is_no_evidence():
    layer, events = made(Anomaly(Guard(WeightedMean())), codec="q8", downlink="q8")

    def crash(replies):
        node = replies[0]
        lost = RecordDict({RECORD: ConfigRecord({"missing": True})})
        replies[0] = Message(lost, metadata=node.metadata)
        return [*replies[:2], *replies[2:]]

    round_of(layer, grid_of(app(), 6), 1, start_model(), crash)
    assert codes(events) == ["model-missing"]
    assert [kind for kind, _ in events if kind == "incident"] == []


def test_error_replies_go_on_to_the_guard():
    layer, events = made(codec="q8")

    def fail(replies):
        metadata = replies[0].metadata
        replies[0] = Message(Error(2, "crash"), metadata=metadata)
        return replies

    round_of(layer, grid_of(app(), 3), 1, start_model(), fail)
    assert codes(events) == ["client-error"]


def test_a_lost_residual_is_told():
    layer, events = made(codec="topk-q8")
    grid, arrays = grid_of(app(), 3), start_model()
    arrays = round_of(layer, grid, 1, arrays)
    assert "residual-lost" not in dict(events)
    grid.context(grid.get_node_ids()[0]).state.clear()
    round_of(layer, grid, 2, arrays)
    [told] = [data for kind, data in events if kind == "residual-lost"]
    assert told["node"] == layer.name_of(grid.get_node_ids()[0])


def deployed(folder, nodes=3):
    """A grid of nodes that have just started: nothing but their folders is left."""
    grid = grid_of(app(), nodes)
    for node in grid.get_node_ids():
        config = grid.context(node).node_config
        config["state-path"] = str(folder)
        config.pop("simulated")
    return grid


def test_a_deployed_node_that_restarts_goes_on_from_its_folder(tmp_path):
    found = []
    for restarts in (False, True):
        layer, events = made(codec="topk-q8", downlink="q8")
        folder, arrays = tmp_path / str(restarts), start_model()
        grid = deployed(folder)
        for number in range(1, 5):
            arrays = round_of(layer, grid, number, arrays)
            grid = deployed(folder) if restarts else grid
        assert codes(events) == []
        assert "residual-lost" not in dict(events)
        assert not any(len(grid.context(n).state) for n in grid.get_node_ids())
        found.append(weights(arrays))
    np.testing.assert_array_equal(*found)


def test_a_damaged_folder_is_told_and_the_run_goes_on(tmp_path):
    layer, events = made(codec="topk-q8", downlink="q8")
    arrays = round_of(layer, deployed(tmp_path), 1, start_model())
    for path in tmp_path.glob("*/*/*"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    arrays = round_of(layer, deployed(tmp_path), 2, arrays)
    assert codes(events) == ["model-missing"] * 3
    round_of(layer, deployed(tmp_path), 3, arrays)
    assert codes(events) == ["model-missing"] * 3
    lost = [data for kind, data in events if kind == "residual-lost"]
    assert [data["damaged"] for data in lost] == [True] * 3


def test_the_model_is_x_plus_the_update_and_nodes_train_from_m():
    """The inner layers see M_t, the server keeps x_t."""
    layer, _ = made(codec="none", downlink="eden-2")
    grid, x = grid_of(app(), 2), start_model()
    mean = np.mean([target(p) for p in range(2)], axis=0)
    for number in range(1, 6):
        before = weights(x)
        x = round_of(layer, grid, number, x)
        np.testing.assert_allclose(weights(x) - before, mean, atol=1e-5)
        seen = weights(layer.model.arrays)
        assert (np.abs(seen - before).max() > 1e-3) == (number > 1)


def test_evaluation_goes_down_the_same_chain():
    layer, events = made(codec="none", downlink="q8")
    grid, x = grid_of(app(), 3), start_model()
    x = round_of(layer, grid, 1, x)
    messages = list(layer.configure_evaluate(1, x, config(), grid))
    assert all(STEPS in m.content and "arrays" not in m.content for m in messages)
    metrics = layer.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert metrics["loss"] == pytest.approx(weights(x).mean(), abs=0.02)
    # Training starts from what was evaluated: nothing is sent twice.
    messages = list(layer.configure_train(2, x, config(), grid))
    assert all(len(m.content[STEPS]) == 0 for m in messages)
    layer.aggregate_train(2, grid.send_and_receive(messages))
    assert codes(events) == []


@pytest.mark.parametrize("codec", ["topk-q8", "eden-1"])
def test_noise_by_the_server_covers_what_was_decoded(codec):
    """However long decoded updates are, what they add to the noise is the clip."""
    keys = {"privacy.mechanism": "gaussian", "privacy.insecure": True}
    keys |= {"privacy.clip": 0.5, "train.rounds": 2, "server.lr": 1.0}
    released = []
    for size in (0.0, 100.0):
        private = Guard(CentralDP(Job.of(keys)), static=True)
        layer, events = made(private, codec=codec)
        grid = grid_of(app(amount=lambda p, size=size: size * target(p)), 3)
        arrays = round_of(layer, grid, 1, start_model())
        arrays = round_of(layer, grid, 2, arrays)  # with feedback of the first
        released.append(weights(arrays))
        assert codes(events) == []
    # The noise of a seed is the same: the rest is the mean of three clipped updates.
    moved = np.linalg.norm(released[1] - released[0])
    assert 0 < moved <= 2 * 0.5 * 1.001


def test_messages_share_contents():
    """One content for all nodes that get the same: not a copy of the model for each."""
    layer, _ = made(codec="topk-q8", downlink="q8")
    grid = grid_of(app(), 5)
    messages = list(layer.configure_train(1, start_model(), config(), grid))
    assert len({id(m.content) for m in messages}) == 1


def summed(layer, grid, number, arrays):
    """One round as inside a secure sum: its server half sees one mean of the values."""
    messages = list(layer.configure_train(number, arrays, config(), grid))
    replies = grid.send_and_receive(messages)
    vectors = [r.content["update"]["delta"].numpy() for r in replies]
    expected = [((layer.reduced_size,), np.float32)] * len(messages)
    assert [(v.shape, v.dtype) for v in vectors] == expected
    numbers = RecordDict({"metrics": MetricRecord({"num-examples": len(vectors)})})
    mean = np.mean(vectors, axis=0).astype(np.float32)
    replies[0].content = with_delta(numbers, mean)
    return layer.aggregate_train(number, replies[:1])[0]


class TestReduced:
    """Inside a secure sum: values at public places in, one mean of them back."""

    def test_mods_hand_on_k_values_and_the_layer_expands_their_mean(self):
        layer, _ = made(codec="randk", ratio=0.1, reduced=True, error_feedback=False)
        base = start_model()
        arrays = summed(layer, grid_of(app(), 3), 1, base)
        assert layer.reduced_size == round(0.1 * SIZE)
        moved = weights(arrays) - weights(base)
        whole = np.mean([target(p) for p in range(3)], axis=0)
        sent = moved != 0
        assert sent.sum() == layer.reduced_size
        np.testing.assert_allclose(moved[sent], whole[sent], rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("codec", ["topk-shared", "randk"])
    def test_with_feedback_everything_is_sent_in_time(self, codec):
        layer, _ = made(codec=codec, ratio=0.2, reduced=True)
        grid, base = grid_of(app(), 2), start_model()
        arrays = base
        for number in range(1, 31):
            arrays = summed(layer, grid, number, arrays)
        moved = (weights(arrays) - weights(base)) / 30
        whole = np.mean([target(p) for p in range(2)], axis=0)
        assert np.linalg.norm(moved - whole) < 0.4 * np.linalg.norm(whole)

    def test_a_mean_of_another_length_is_an_error(self):
        layer, _ = made(codec="randk", ratio=0.1, reduced=True)
        grid = grid_of(app(), 2)
        messages = list(layer.configure_train(1, start_model(), config(), grid))
        [reply, _] = grid.send_and_receive(messages)
        reply.content = with_delta(reply.content, np.zeros(SIZE, np.float32))
        with pytest.raises(ProtocolError, match="shape"):
            layer.aggregate_train(1, [reply])

    def test_only_linear_codecs_can_be_summed(self):
        for codec in ("q8", "topk", "topk-q8", "eden-1", "eden-2", "adaptive", "none"):
            with pytest.raises(ValueError, match="reduced"):
                Compression(FedAvg(), codec=codec, reduced=True)

    def test_every_node_has_the_same_places(self):
        layer, _ = made(codec="randk", ratio=0.1, reduced=True)
        grid = grid_of(app(amount=lambda p: np.arange(SIZE, dtype=np.float32)), 4)
        messages = list(layer.configure_train(1, start_model(), config(), grid))
        found = {
            r.content["update"]["delta"].data for r in grid.send_and_receive(messages)
        }
        assert len(found) == 1


def test_its_asks_say_nothing_but_what_is_needed():
    layer, _ = made(codec="q8")
    messages = layer.configure_train(1, start_model(), config(), grid_of(app(), 2))
    ask = Ask.of(next(iter(messages)).content)
    assert (ask.codec, ask.round, ask.feedback, ask.reduced) == ("q8", 1, False, False)
    assert (ask.selection, ask.model, ask.versions) == (b"", b"", ())


def test_a_ratio_may_be_an_integer():
    """Nodes read it from the wire, where types count."""
    layer, events = made(codec="topk", ratio=1)
    base = start_model()
    arrays = round_of(layer, grid_of(app(), 2), 1, base)
    assert codes(events) == []
    mean = np.mean([target(p) for p in range(2)], axis=0)
    moved = weights(arrays) - weights(base)
    assert np.linalg.norm(moved - mean) < 0.01 * np.linalg.norm(mean)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="codec"):
        Compression(FedAvg(), codec="zip")
    with pytest.raises(ValueError, match="downlink"):
        Compression(FedAvg(), downlink="topk")
    with pytest.raises(ValueError, match="ratio"):
        Compression(FedAvg(), codec="topk", ratio=0.0)


def test_frames_are_read_from_frames_only():
    content = reply_content(start_model())
    assert list(framed(content, b"x")[FRAME]) == [FRAME]
    assert wrapped(b"abc").data == b"abc"
    delta = read_delta(content, Model(start_model()))
    assert not delta.any()
