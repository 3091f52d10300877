"""What a node refuses: requests and decryptions that could tell about one node."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from strategies.secure import automatic
from strategies.secure.given import given_by
from strategies.secure.holder import TRIES, opened
from strategies.secure.identity import Identity, Roster
from strategies.secure.journal import Journal
from strategies.secure.keys import keyring_of
from strategies.secure.mod import secure_mod
from strategies.secure.terms import OPEN, Request, cohort_hash, terms_of
from strategies.secure.wire import (
    FRAME,
    SECURE,
    frame_of,
    open_head,
    seal,
)
from tests.strategies.secure.support import Round, job_of
from tests.support.federation import config, model
from truststram.errors import ConfigError, ProtocolError
from truststram.job import Job

JOB = job_of("bfv")
DECRYPTOR = job_of("bfv", key_holder="decryptor")
ADDS = job_of("bfv", key_holder="decryptor", threat="malicious")


class Holder:
    """A federation after its updates came, and one node that could decrypt."""

    def __init__(self, job=JOB, nodes=5, at=0):
        self.f = Round(job, nodes)
        self.replies = self.f.replies()
        self.frames = [frame_of(reply.content) for reply in self.replies]
        self.asked = self.f.layer._request
        self.heads = [self.head(frame) for frame in self.frames]
        self.context = self.f.grid.context(self.f.grid.get_node_ids()[at])
        self.ring = keyring_of(self.context, job)
        size = terms_of(job).slots(self.header(0).about).size
        bodies = [f[len(h) :] for f, h in zip(self.frames, self.heads, strict=True)]
        self.size, self.bodies = size, bodies
        self.total = self.sum_of(range(len(bodies)))
        self.part = self.sum_of([0])

    def sum_of(self, nodes):
        bodies = [self.bodies[i] for i in nodes]
        return self.ring.key.cipher.add(bodies, self.size)

    def head(self, frame):
        return open_head(frame, automatic.find(1).roster).head

    def header(self, i):
        return open_head(self.frames[i], automatic.find(1).roster).header

    def signed(self, i, **changes):
        """Node i's head with other fields, signed by it."""
        header = replace(self.header(i), **changes)
        node = automatic.find(1).identity(header.node)
        frame = seal(node, header, self.frames[i][len(self.heads[i]) :])
        return self.head(frame)

    def open(self, heads=None, total=None, journal=None, **changes):
        request = Request(
            OPEN,
            1,
            cohort=self.asked.cohort,
            model=self.asked.model,
            content=self.asked.content,
            heads=tuple(self.heads if heads is None else heads),
            total=self.total if total is None else total,
            frames=tuple(self.frames),
        )
        terms = terms_of(self.f.job)
        key = self.ring.key.fingerprint
        journal = journal or Journal(self.context, key, None)
        return opened(replace(request, **changes), terms, "1", self.ring, journal)

    def refused(self, **changes):
        with pytest.raises(ProtocolError) as error:
            self.open(**changes)
        return error.value.code


@pytest.fixture(scope="module")
def holder():
    return Holder()


def test_an_honest_request_is_answered_again_and_again(holder):
    assert open_head(holder.open(), automatic.find(1).roster).header.stage == "sum"
    assert holder.open()[-60:] == holder.open()[-60:]


def test_nodes_that_were_given_another_model_stop_the_decryption():
    holder = Holder()
    heads = [*holder.heads[:4], holder.signed(4, model="0" * 64)]
    assert holder.refused(heads=heads) == "model"
    # And a holder that was itself given another one does not decrypt for the rest.
    assert holder.refused(model="0" * 64) == "model"


@pytest.mark.parametrize(
    "field", ["scheme", "job", "round", "stage", "cohort", "key", "parameters"]
)
def test_all_heads_are_of_this_very_sum(field):
    holder = Holder()
    value = 2 if field == "round" else "0" * 64
    heads = [*holder.heads[:4], holder.signed(4, **{field: value})]
    assert holder.refused(heads=heads) == field


def test_heads_are_signed_by_members_and_each_once():
    holder = Holder()
    heads = holder.heads
    assert holder.refused(heads=[*heads[:4], heads[0]]) == "duplicate"
    broken = heads[4][:-1] + bytes([heads[4][-1] ^ 1])
    assert holder.refused(heads=[*heads[:4], broken]) == "signature"
    other = Holder()  # another federation: other identities
    assert holder.refused(heads=[*other.heads[:4]]) in ("unknown-key", "model")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_sums_of_too_few_are_not_decrypted(count):
    holder = Holder()
    assert holder.refused(heads=holder.heads[:count]) == "cohort-size"


def test_a_sum_of_fewer_than_it_has_heads_is_not_told():
    holder = Holder()
    assert holder.refused(total=holder.part) == "sum-range"


def test_no_two_sums_from_which_a_node_could_be_subtracted():
    holder = Holder()
    holder.open()
    size = terms_of(JOB).slots(holder.header(0).about).size
    bodies = [f[len(h) :] for f, h in zip(holder.frames, holder.heads, strict=True)]
    total = holder.ring.key.cipher.add(bodies[1:], size)
    assert holder.refused(heads=holder.heads[1:], total=total) == "reopened"


def test_a_sum_that_fails_its_checks_leaves_the_model_to_other_sets():
    holder = Holder()
    assert holder.refused(total=holder.part) == "sum-range"
    assert holder.open(total=holder.sum_of(range(1, 5)), heads=holder.heads[1:])
    # That one was told: the first set is closed now.
    assert holder.refused() == "reopened"


def test_what_refusals_tell_is_bounded():
    holder = Holder()
    for i in range(TRIES):
        total = holder.ring.key.cipher.encrypt(np.full(holder.size, i, np.uint32))
        total = holder.ring.key.cipher.add([total], holder.size)
        assert holder.refused(total=total) in ("sum-range", "checksum")
    for _ in range(2):
        assert holder.refused(total=holder.part) == "reopened"
        assert holder.refused() == "reopened"


def test_a_decryptor_that_adds_is_the_only_one():
    holder = Holder(ADDS, at=4)
    members = list(holder.ring.roster)
    assert holder.open()
    more = replace(Identity.generate("second").member, role="decryptor")
    holder.ring = replace(holder.ring, roster=Roster([*members, more]))
    assert holder.refused() == "role"


def test_a_node_that_took_no_part_does_not_decrypt():
    holder = Holder()
    empty = Journal(automatic_context(), holder.ring.key.fingerprint, None)
    assert holder.refused(journal=empty) == "model"


def automatic_context():
    from truststram._flower import make_context

    return make_context(9, {}, {})


def test_who_trains_does_not_decrypt_where_a_decryptor_does():
    f = Round(DECRYPTOR, 5)
    f.replies()
    request = Request(OPEN, 1, f.layer._request.cohort, f.layer._request.model)
    context = f.grid.context(f.grid.get_node_ids()[0])
    ring = keyring_of(context, DECRYPTOR)
    journal = Journal(context, ring.key.fingerprint, None)
    with pytest.raises(ProtocolError, match="role"):
        opened(request, terms_of(DECRYPTOR), "1", ring, journal)


def test_a_decryptor_that_adds_does_not_look_at_the_servers_sum():
    semi, full = Holder(DECRYPTOR, at=4), Holder(ADDS, at=4)
    semi_part = semi.refused(total=semi.part)
    assert semi_part == "sum-range"
    assert full.open(total=full.part)[-100:] == full.open(total=b"")[-100:]
    broken = full.frames[0][:-1] + bytes([full.frames[0][-1] ^ 1])
    assert full.refused(frames=(broken, *full.frames[1:])) == "body"
    assert full.refused(frames=tuple(full.frames[:2])) == "cohort-size"


def answer(f, message, change):
    content = RecordDict(dict(message.content.items()))
    content[SECURE] = message.content[SECURE].copy()
    change(content)
    twin = Message(content, message.metadata.dst_node_id, "train", group_id="")
    [reply] = f.grid.send_and_receive([twin])
    return reply


def set_cohort(cohort):
    def change(content):
        content[SECURE]["cohort"] = cohort

    return change


def other_model(content):
    content["arrays"] = model(0.7)


def other_model_announced(content):
    content["arrays"] = model(0.7)
    given = given_by([Message(content, 1, "train", group_id="")])
    content[SECURE]["model"], content[SECURE]["content"] = given.model, given.content


def no_request(content):
    del content[SECURE]


REFUSED = {
    "one of two": (set_cohort(["1000003", "2000006"]), "cohort-size"),
    "the same one thrice": (set_cohort(["1000003"] * 3), "cohort-size"),
    "not asked": (set_cohort(["1", "2", "3"]), "not in the cohort"),
    "more than keys are for": (
        set_cohort([str(i) for i in range(200)] + ["1000003"]),
        "cohort-size",
    ),
    "another model": (other_model, "not the one that was announced"),
    "no request": (no_request, "asks for no secure sum"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_node_does_not_train_for_an_unsound_request(name):
    change, reason = REFUSED[name]
    trained = []
    f = Round(JOB, 4, lambda partition, _: trained.append(partition) or 0.1)
    message = min(f.ask(), key=lambda m: m.metadata.dst_node_id)
    reply = answer(f, message, change)
    assert reply.has_error()
    assert reason in reply.error.reason
    assert trained == []
    assert not answer(f, message, lambda content: None).has_error()
    assert trained == [0]


def test_a_node_may_train_for_other_cohorts_and_decrypts_what_it_took_part_in():
    f = Round(JOB, 5)
    message = min(f.ask(), key=lambda m: m.metadata.dst_node_id)
    assert not answer(f, message, lambda content: None).has_error()
    fewer = set_cohort(message.content[SECURE]["cohort"][:4])
    assert not answer(f, message, fewer).has_error()
    assert not answer(f, message, other_model_announced).has_error()
    holder = Holder()
    others = (*holder.asked.cohort, "7")
    heads = [holder.signed(i, cohort=cohort_hash(others)) for i in range(5)]
    assert holder.refused(cohort=others, heads=heads) == "model"


def test_a_decryptor_is_never_made_to_train():
    f = Round(DECRYPTOR, 5)
    message = f.ask()[0]
    decryptor = f.grid.get_node_ids()[4]
    content = message.content
    request = Request("update", 1, (*map(str, f.grid.get_node_ids()),), "m")
    asked = RecordDict({"arrays": content["arrays"], "config": config()})
    asked[SECURE] = request.record()
    [reply] = f.grid.send_and_receive(
        [Message(asked, decryptor, "train", group_id="1")]
    )
    assert "never trains" in reply.error.reason


@pytest.mark.parametrize("scheme", ["none", "secagg"])
def test_the_mod_is_for_homomorphic_encryption(scheme):
    with pytest.raises(ConfigError, match="ckks or bfv"):
        secure_mod(Job.of({"secure.scheme": scheme}))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("strategies.secure.keys.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'truststram-fl\[secure\]'"):
        secure_mod(JOB)
    with pytest.raises(ConfigError, match="TenSEAL"):
        Round(JOB)


def test_a_frame_is_bytes():
    f = Round(JOB, 4)
    assert all(isinstance(r.content[SECURE][FRAME], bytes) for r in f.replies())
