"""The chain on the way down: both ends have one model, or know that they do not."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from strategies.compression import wire
from strategies.compression.asking import with_ask
from strategies.compression.chain import Chain, moved
from strategies.compression.codecs import make_codec
from strategies.compression.downlink import DOWNLINK, model_hash
from strategies.compression.follow import followed
from strategies.compression.messages import STEPS, Ask
from strategies.stores import ContextStore
from strategies.update import Model
from truststram._flower import become_task, make_context
from truststram.errors import ProtocolError
from truststram.records import pack

JOB = "0" * 32


def model(values, counter=0, dtype=np.float32):
    w = np.asarray(values, dtype)
    return Model(ArrayRecord({"w": pack(w), "n": pack(np.array([counter], np.int64))}))


def walk(seed, rounds=8, d=400):
    """Models of a run: x_0, x_1, ..."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=d)
    for _ in range(rounds):
        yield model(x)
        x = x + 0.1 * rng.standard_t(4, size=d)


class Node:
    """The other end."""

    def __init__(self):
        become_task(1)
        self.context = make_context(7, {"simulated": True}, {})

    @property
    def store(self):
        return ContextStore(self.context, JOB)

    def get(self, chain, arrays, steps):
        """Receive what the server sends; ``steps`` as from ``Chain.since``."""
        ask = Ask(JOB, 1, model=chain.versions[-1])
        frames = None
        if steps is not None:
            starts = tuple(chain.versions[i] for i in steps)
            ask = Ask(JOB, 1, model=ask.model, stepwise=True, versions=starts)
            frames = [chain.steps[i] for i in steps]
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": 0.1})})
        content = with_ask(content, ask, frames)
        assert ("arrays" in content) == (steps is None)
        ask = Ask.of(content)
        return followed(ask, content, self.store)


def same(one, other):
    return all(one[k].numpy().tobytes() == other[k].numpy().tobytes() for k in one)


@pytest.mark.parametrize("codec", DOWNLINK)
@pytest.mark.parametrize("absent", [set(), {2, 3}, {1, 2, 3, 4, 5}, {0, 1}])
def test_a_node_has_the_servers_model_whatever_it_missed(codec, absent):
    chain, node = Chain(make_codec(codec, 0.1), 1), Node()
    small = 0
    for number, x in enumerate(walk(1)):
        arrays = chain.advance(x).arrays
        if number in absent:
            continue
        steps = chain.since("a")
        small += steps is not None
        assert same(node.get(chain, arrays, steps), arrays)
        chain.acknowledged("a", chain.versions[-1])
    assert small >= 1


@pytest.mark.parametrize("codec", DOWNLINK)
def test_the_error_does_not_add_up(codec):
    """The distance of M_t from x_t stays below a few steps of the model."""
    chain, last = Chain(make_codec(codec, 0.1), 1), None
    steps, distances = [], []
    for x in walk(2, rounds=40):
        seen = chain.advance(x)
        distances.append(np.linalg.norm(x.flat - seen.flat))
        steps.append(np.linalg.norm(x.flat - last.flat) if last else 0.0)
        last = x
    assert distances[0] == 0
    assert max(distances[20:]) < 6 * np.median(steps)
    assert np.mean(distances[30:]) < 1.5 * np.mean(distances[10:20])


def test_all_of_it_is_sent_where_that_is_smaller():
    chain = Chain(make_codec("q8", 1.0), 1)
    models = list(walk(3, rounds=12))
    chain.advance(models[0])
    chain.acknowledged("old", chain.versions[-1])
    for x in models[1:]:
        chain.advance(x)
        assert sum(map(len, chain.steps)) <= x.arrays.count_bytes()
        assert len(chain.versions) == len(chain.steps) + 1
    assert chain.since("old") is None
    assert chain.since("unknown") is None
    chain.acknowledged("new", chain.versions[-2])
    assert list(chain.since("new")) == [len(chain.steps) - 1]


def test_the_same_model_makes_no_step():
    """Evaluation and training of one model, and rounds without a result."""
    chain, node = Chain(make_codec("q8", 1.0), 1), Node()
    first, second = list(walk(4, rounds=2))
    chain.advance(first)
    node.get(chain, chain.advance(first).arrays, None)
    chain.acknowledged("a", chain.versions[-1])
    seen = chain.advance(second)
    version = chain.versions[-1]
    assert chain.advance(model(second.flat)) is seen
    assert (chain.versions[-1], len(chain.steps)) == (version, 1)
    node.get(chain, seen.arrays, chain.since("a"))
    chain.acknowledged("a", version)
    assert len(chain.since("a")) == 0
    assert same(node.get(chain, seen.arrays, chain.since("a")), seen.arrays)


def test_a_node_that_is_further_than_the_server_knows_takes_the_rest():
    """Its reply was lost, the model was not."""
    chain, node = Chain(make_codec("q8", 1.0), 1), Node()
    models = list(walk(5, rounds=4))
    node.get(chain, chain.advance(models[0]).arrays, None)
    chain.acknowledged("a", chain.versions[-1])
    for x in models[1:3]:  # no acknowledgement arrives
        node.get(chain, chain.advance(x).arrays, chain.since("a"))
    arrays = chain.advance(models[3]).arrays
    assert len(chain.since("a")) == 3
    assert same(node.get(chain, arrays, chain.since("a")), arrays)


def missing(node, chain, arrays, steps):
    with pytest.raises(ProtocolError) as error:
        node.get(chain, arrays, steps)
    return error.value.code


def test_a_node_without_the_model_says_so():
    chain, node = Chain(make_codec("q8", 1.0), 1), Node()
    models = list(walk(6, rounds=3))
    chain.advance(models[0])
    chain.acknowledged("a", chain.versions[-1])
    arrays = chain.advance(models[1]).arrays
    assert missing(node, chain, arrays, chain.since("a")) == "model-missing"
    for _ in range(5):  # however often its memory dies
        assert not chain.missed("a", differs=False)
        assert chain.since("a") is None
        assert same(node.get(chain, arrays, None), arrays)
        chain.acknowledged("a", chain.versions[-1])
        assert chain.since("a") is not None


def test_a_node_that_twice_makes_another_model_gets_whole_ones():
    chain = Chain(make_codec("q8", 1.0), 1)
    chain.advance(next(walk(6)))

    def differs():
        off = chain.missed("a", differs=True)
        assert chain.since("a") is None
        chain.acknowledged("a", chain.versions[-1])
        return off

    assert not differs()
    assert chain.since("a") is not None
    # Its steps were right again: it was no matter of arithmetic.
    chain.acknowledged("a", chain.versions[-1], stepwise=True)
    assert not differs()
    assert chain.since("a") is not None
    assert differs()
    assert chain.since("a") is None
    assert not differs()  # told once


def test_a_node_with_another_model_says_so():
    chain, node = Chain(make_codec("q8", 1.0), 1), Node()
    models = list(walk(7, rounds=2))
    node.get(chain, chain.advance(models[0]).arrays, None)
    about = node.store.load("model")
    parts = [bytes(part) for part in about.parts]
    parts[0] = np.float32(9).tobytes() + parts[0][4:]
    node.store.save("model", about.about, parts)
    chain.acknowledged("a", chain.versions[-1])
    arrays = chain.advance(models[1]).arrays
    assert missing(node, chain, arrays, chain.since("a")) == "model-differs"


@pytest.mark.parametrize("what", ["dropped", "damaged", "reordered"])
def test_wrong_steps_are_noticed(what):
    chain, node = Chain(make_codec("q8", 1.0), 1), Node()
    models = list(walk(8, rounds=3))
    node.get(chain, chain.advance(models[0]).arrays, None)
    chain.acknowledged("a", chain.versions[-1])
    for x in models[1:]:
        arrays = chain.advance(x).arrays
    if what == "damaged":
        chain.steps[1] = chain.steps[1][:-1] + b"\0"
    elif what == "reordered":
        name = wire.spec_hash(models[0].spec)
        zero = np.zeros(400, np.float32)
        rng = np.random.default_rng(0)
        chain.steps[1] = wire.pack(make_codec("q8", 1), zero, spec_hash=name, rng=rng)
    else:
        ask = Ask(
            JOB,
            1,
            model=chain.versions[-1],
            stepwise=True,
            versions=(chain.versions[0],),
        )
        with pytest.raises(ProtocolError):
            followed(ask, RecordDict({STEPS: ArrayRecord()}), node.store)
        return
    assert missing(node, chain, arrays, chain.since("a")) in (
        "model-differs",
        "frame-checksum",
    )
    # And nothing of it was remembered.
    assert bytes.fromhex(node.store.about("model")["hash"]) == chain.versions[0]


def test_a_full_model_that_is_not_the_announced_one_is_refused():
    chain, node = Chain(make_codec("q8", 1.0), 1), Node()
    x = model(np.ones(4))
    chain.advance(x)
    code = missing(node, chain, model(np.zeros(4)).arrays, None)
    assert code == "model-differs"


def test_other_integers_send_all_of_it():
    chain = Chain(make_codec("q8", 1.0), 1)
    chain.advance(model(np.ones(400)))
    chain.acknowledged("a", chain.versions[-1])
    seen = chain.advance(model(np.full(400, 2.0), counter=5))
    assert chain.since("a") is None
    assert seen.arrays["n"].numpy() == [5]
    np.testing.assert_array_equal(seen.flat, 2.0)


def test_a_model_that_is_not_finite_is_sent_as_it_is():
    chain = Chain(make_codec("q8", 1.0), 1)
    chain.advance(model(np.ones(400)))
    chain.acknowledged("a", chain.versions[-1])
    seen = chain.advance(model(np.full(400, np.nan)))
    assert np.isnan(seen.flat).all()
    assert chain.since("a") is None
    seen = chain.advance(model(np.ones(400)))
    assert np.isfinite(seen.flat).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_follow_too(dtype):
    """Both ends round after every step, however many a node takes at once."""
    chain, node = Chain(make_codec("topk-q8", 0.1), 1), Node()
    rng = np.random.default_rng(1)
    x, missed = rng.normal(size=400), 0
    for number in range(9):
        x = x + 0.1 * rng.normal(size=400)
        arrays = chain.advance(model(x, dtype=dtype)).arrays
        if number in (2, 3, 6, 7):
            continue
        steps = chain.since("a")
        assert (steps is None) == (number == 0)
        missed = max(missed, len(steps or ()))
        got = node.get(chain, arrays, steps)
        assert same(got, arrays)
        assert got["w"].dtype == np.dtype(dtype).name
        chain.acknowledged("a", chain.versions[-1])
    assert missed == 3


@pytest.mark.parametrize("codec", DOWNLINK)
def test_a_resumed_server_makes_the_same_models(codec):
    models = list(walk(9, rounds=6))
    chain = Chain(make_codec(codec, 0.1), 1)
    expected = [chain.advance(x).flat.copy() for x in models]
    chain = Chain(make_codec(codec, 0.1), 1)
    for x in models[:3]:
        chain.advance(x)
    chain.acknowledged("a", chain.versions[-1])
    again = Chain(make_codec(codec, 0.1), 1)
    again.load_state(chain.state())
    for x, flat in zip(models[2:], expected[2:], strict=True):  # the last one again
        assert again.advance(x).flat.tobytes() == flat.tobytes()
        assert again.since("a") is None  # the nodes may be new
        assert len(again.versions) == len(again.steps) + 1
    again.acknowledged("a", again.versions[0])
    assert again.since("a") is not None


def test_the_servers_model_gets_the_update():
    exact, seen = model([1.0, 2.0]), model([1.5, 1.0])
    result = model([2.5, 0.0], counter=4)
    found = moved(result.arrays, seen, exact)
    np.testing.assert_array_equal(found["w"].numpy(), [2.0, 1.0])
    assert found["n"].numpy() == [4]


def test_the_name_of_a_model_depends_on_form_and_values():
    names = {
        model_hash(model([1.0, 2.0])),
        model_hash(model([1.0, 3.0])),
        model_hash(model([1.0, 2.0], counter=1)),
        model_hash(model([1.0, 2.0], dtype=np.float64)),
        model_hash(model([[1.0, 2.0]])),
    }
    assert len(names) == 5
    assert {len(n) for n in names} == {16}
    assert model_hash(model([1.0, 2.0])) in names
