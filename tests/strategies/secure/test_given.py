"""What nodes are given, in hashes: all that reaches the app, and nothing else."""

from __future__ import annotations

import io

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)

from strategies.secure.contribution import reported
from strategies.secure.given import check_given, given_by, hash_of_job, hash_of_model
from strategies.secure.terms import terms_of
from strategies.secure.wire import SECURE
from tests.strategies.secure.support import job_of
from tests.support.federation import model, weights
from truststram._flower import become_task
from truststram.errors import ProtocolError, RunError
from truststram.job import Job


@pytest.fixture(autouse=True)
def _run():
    become_task(1)


def message(kind="train", group="", **records):
    content = {"arrays": model(0.5), "config": ConfigRecord({"lr": 0.1}), **records}
    kept = {name: record for name, record in content.items() if record is not None}
    return Message(RecordDict(kept), 7, kind, group_id=group)


def entries(**config):
    return {"config": ConfigRecord(config)}


# What a message has in the place of, or beside, the usual.
OTHERS = {
    "value": entries(lr=0.0),
    "last digit": entries(lr=float(np.nextafter(0.1, 1))),
    "key": entries(rate=0.1),
    "kind of number": entries(lr=1),
    "another": entries(lr=1.0),
    "truth": entries(lr=True),
    "text": entries(lr="1"),
    "bytes": entries(lr=b"1"),
    "list": entries(lr=[1]),
    "list of truths": entries(lr=[True]),
    "two texts": entries(lr=["1", "2"]),
    "one text": entries(lr=["12"]),
    "one more": entries(lr=0.1, epochs=0),
    "order": entries(epochs=0, lr=0.1),
    "none": {"config": None},
    "metrics": {"config": MetricRecord({"lr": 0.1})},
    "a record more": {"more": ConfigRecord({"a": 1})},
    "its name": {"most": ConfigRecord({"a": 1})},
    "empty record": {"more": ConfigRecord()},
    "weights": {"arrays": model(0.6)},
    "shapes": {"arrays": model(0.5, {"w": (4, 3), "b": (5,)})},
    "type": {"kind": "train.gently"},
    "group": {"group": "2"},
}


def test_everything_that_reaches_the_app_is_in_the_hash():
    hashes = [given_by([message(**other)]).content for other in ({}, *OTHERS.values())]
    assert len(set(hashes)) == len(hashes)
    # And nothing else is: not the request, nor who it is sent to.
    twin = message(**{SECURE: ConfigRecord({"stage": "mask"})})
    twin.metadata.dst_node_id = 8
    assert given_by([twin]) == given_by([message()])


def test_a_message_hashes_alike_after_its_journey():
    sent = message(
        config=ConfigRecord({"b": 1, "a": [1.5, -0.0], "c": b"x", "d": ["", "y"]}),
        more=MetricRecord({"z": 2, "y": [0.1]}),
    )
    content = RecordDict()
    for name, record in sent.content.items():
        parts = {r.object_id: r for r in (record.children or {}).values()}
        children = {}
        for key, array in parts.items():
            chunks = {c.object_id: c for c in (array.children or {}).values()}
            children[key] = type(array).inflate(array.deflate(), chunks or None)
        content[name] = type(record).inflate(record.deflate(), children or None)
    arrived = Message(content, 7, "train", group_id="")
    assert given_by([arrived]) == given_by([sent])


@pytest.mark.parametrize("name", OTHERS)
def test_a_node_accepts_what_was_announced_and_nothing_else(name):
    given = given_by([message()])
    arrays = check_given(message(), given.model, given.content)
    np.testing.assert_array_equal(weights(arrays), 0.5)
    with pytest.raises(ProtocolError) as error:
        check_given(message(**OTHERS[name]), given.model, given.content)
    expected = "model" if name in ("weights", "shapes") else "content"
    assert error.value.code == expected


@pytest.mark.parametrize(
    ("name", "told"),
    {
        "value": r"record 'config'",
        "none": r"record 'config'",
        "weights": r"record 'arrays'",
        "a record more": r"record 'more'",
        "type": r"\(type\)",
    }.items(),
)
def test_the_server_sends_all_nodes_the_same_or_says_what_differs(name, told):
    alike = [message(), message(), message()]
    assert given_by(alike) == given_by(alike[:1])
    with pytest.raises(RunError, match=told):
        given_by([*alike, message(**OTHERS[name])])


def test_records_in_another_order_are_another_message():
    arrays, first = model(0.5), ConfigRecord({"lr": 0.1})
    one = Message(RecordDict({"a": arrays, "b": first}), 7, "train", group_id="")
    two = Message(RecordDict({"b": first, "a": arrays}), 8, "train", group_id="")
    with pytest.raises(RunError, match="order of records"):
        given_by([one, two])


@pytest.mark.parametrize("records", [{"arrays": None}, {"more": ArrayRecord()}])
def test_a_node_gets_one_model(records):
    with pytest.raises(RunError, match=r"has [02] array records"):
        given_by([message(**records)])
    assert given_by([]).model == given_by([]).content == ""


def test_the_hash_of_a_model_sees_names_shapes_and_values():
    others = [model(0.5 + 1e-7), model(0.5, {"w": (4, 3), "b": (5,)})]
    others.append(model(0.5, {"v": (3, 4), "b": (5,)}))
    assert hash_of_model(model(0.5)) == hash_of_model(model(0.5))
    assert len({hash_of_model(x) for x in [model(0.5), *others]}) == 4


def written(values, version=(1, 0), **claims):
    """Return an array as a server could write it, with claims about it."""
    data = io.BytesIO()
    np.lib.format.write_array(data, values, version=version)
    array = Array(str(values.dtype), values.shape, "numpy.ndarray", data.getvalue())
    vars(array).update(claims)
    return array


def hash_of(array):
    return hash_of_model(ArrayRecord({"w": array}))


@pytest.mark.parametrize("kind", ["<f4", "<f8", "<i8", "|u1", "|b1", "<f2", "<c8"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (4, 3), (2, 0, 3), (2, 3, 4)])
def test_a_model_is_its_values_however_they_are_written(kind, shape):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    little = written(values)
    forms = [
        Array(values),
        written(values, (2, 0)),
        written(values.copy(order="F")),
        written(values.astype(values.dtype.newbyteorder(">"))),
        written(values, dtype=values.dtype.str),
    ]
    for form in forms:
        np.testing.assert_array_equal(form.numpy(), values)
        assert hash_of(form) == hash_of(little)
    if values.size:
        other = np.asarray(~values if kind == "|b1" else values + 1, kind)
        assert hash_of(written(other)) != hash_of(little)
    assert hash_of(written(values.reshape(1, *shape))) != hash_of(little)
    assert hash_of(written(values.astype("<c16"))) != hash_of(little)


VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
DATA = written(VALUES).data
UNREADABLE = {
    "more bytes": {"data": DATA + b"junk"},
    "fewer bytes": {"data": DATA[:-1]},
    "no bytes": {"data": b""},
    "another type": {"dtype": "float64"},
    "other numbers": {"dtype": "int32"},
    "no type": {"dtype": "nonsense"},
    "objects": {"dtype": "object"},
    "text": {"dtype": "<U1"},
    "records": {"dtype": "f4,f4"},
    "another shape": {"shape": (3, 2)},
    "below 0": {"shape": (-1, -6)},
    "no shape": {"shape": ("x",)},
    "without end": {"shape": (float("inf"),)},
    "too large": {"shape": (0, 2**70), "data": DATA[:-24]},
    "too many lengths": {"shape": (1,) * 99},
    "another format": {"stype": "torch.tensor"},
    "version 3": {"data": DATA[:6] + b"\x03" + DATA[7:]},
}


@pytest.mark.parametrize("claims", UNREADABLE.values(), ids=UNREADABLE)
def test_arrays_that_are_not_what_they_say_are_refused(claims):
    given = given_by([message()])
    bad = ArrayRecord()
    bad["w"] = written(VALUES, **claims)
    with pytest.raises(ProtocolError):
        hash_of_model(bad)
    for records in ({"arrays": bad}, {"more": bad}):
        with pytest.raises(ProtocolError):
            check_given(message(**records), given.model, given.content)
        with pytest.raises(RunError, match="would not read"):
            given_by([message(**records)])


def test_every_setting_of_the_job_is_compared():
    job = job_of("bfv")
    assert hash_of_job(job) == hash_of_job(Job.of(job.config()))
    for key, value in {"train.lr": 1e-9, "train.local-epochs": 7}.items():
        assert terms_of(job).hash != terms_of(job.replace({key: value})).hash


OF_ONE_MACHINE = ["data.path", "run.dir", "run.id", "run.resume"]


def test_places_on_one_machine_and_no_other_settings_are_left_out():
    job = job_of("bfv")
    same = job.replace(dict.fromkeys(OF_ONE_MACHINE, "/srv/x"))
    assert hash_of_job(same) == hash_of_job(job)
    assert terms_of(same).hash == terms_of(job).hash
    for key, value in job.config().items():
        kept = dict(job.config())
        kept[key] = f"{value}x" if isinstance(value, str) else value + 1

        class Other:
            def config(self, kept=kept):
                return kept

        changed = hash_of_job(Other()) != hash_of_job(job)
        assert changed == (key not in OF_ONE_MACHINE)


def test_the_app_does_not_see_the_request():
    seen = []

    def app(found, context):
        seen.append(list(found.content))
        return Message(RecordDict({"a": ConfigRecord()}), reply_to=found)

    asked = message(**{SECURE: ConfigRecord({"lr": 0.0})})
    assert list(reported(asked, None, app)) == ["a"]
    assert seen == [["arrays", "config"]]
