"""Servers that give one node something else: it, or the others, refuse the sum."""

from __future__ import annotations

import io

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from strategies.secure import intake
from strategies.secure.given import given_by
from strategies.secure.graph import MALICIOUS, SEMI_HONEST
from strategies.secure.wire import SECURE
from strategies.server_sgd import ServerSGD
from tests.strategies.secure import masked, support
from tests.support.federation import weights
from truststram.errors import RunError


def gentle(found):
    found.content["config"] = ConfigRecord({**found.content["config"], "lr": 0.0})


def extra(found):
    found.content["hint"] = ConfigRecord({"lr": 0.0})


def fewer(found):
    del found.content["config"]["lr"]


LIES = pytest.mark.parametrize("change", [gentle, extra, fewer])
SCHEMES = {
    "bfv": support.job_of("bfv"),
    "ckks": support.job_of("ckks"),
    "decryptor adds": support.job_of("bfv", key_holder="decryptor", threat=MALICIOUS),
}
every_scheme = pytest.mark.parametrize("job", SCHEMES.values(), ids=SCHEMES)


def lying(node, change, announced=False):
    """A mod outside all others: what reaches this node was changed by the server.

    ``announced``: with a request that fits to it.
    """

    def mod(found, context, call_next):
        partition = int(context.node_config["partition-id"])
        if partition == node and "arrays" in found.content:
            change(found)
            if announced:
                given = given_by([found])
                request = {**found.content[SECURE], "content": given.content}
                found.content[SECURE] = ConfigRecord(request)
        return call_next(found, context)

    return mod


@LIES
@every_scheme
def test_a_node_does_not_train_with_what_was_not_announced(job, change):
    trained = []
    f = support.Round(
        job,
        5,
        lambda partition, _: trained.append(partition) or 0.1,
        mods=[lying(1, change)],
    )
    arrays, _ = f.run()
    assert f.codes == ["client-error"]
    assert "not what was announced" in f.told("reply-dropped")[0]["detail"]
    assert 1 not in trained
    assert weights(arrays) == pytest.approx(0.6, abs=1e-4)


@every_scheme
def test_who_decrypts_refuses_a_sum_of_nodes_that_were_given_different_things(job):
    """The server believes its own lie; whoever holds the key reads the heads."""
    f = support.Round(job, 5, mods=[lying(1, gentle, announced=True)])
    assert f.run()[0] is not None
    assert f.codes == ["content"]  # an honest server drops it
    # A malicious one adds it all the same.
    f = support.Round(job, 5, mods=[lying(1, gentle, announced=True)])
    real = intake.open_frame

    def open_frame(data, roster, expected, most):
        kept = {k: v for k, v in expected.items() if k != "content"}
        return real(data, roster, kept, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake, "open_frame", open_frame)
        assert f.run() == (None, None)
    assert f.codes == ["not-decrypted"]
    assert "content" in f.told("secure-refused")[0]["detail"]


@LIES
@pytest.mark.parametrize("threat", [SEMI_HONEST, MALICIOUS])
@pytest.mark.parametrize("announced", [False, True])
def test_masked_sums_hold_only_nodes_that_were_given_the_same(
    threat, announced, change
):
    f = masked.Federation(7, **{"secure.threat": threat})
    trained = []
    f.report = lambda node, reply: trained.append(node) or reply

    def ask(stage, node, found):
        if (stage, node) == ("mask", 2):
            return mask_of(found)
        return found

    def mask_of(found):
        found.content = RecordDict(
            {k: record.copy() for k, record in found.content.items()}
        )
        change(found)
        if announced:
            content = given_by([found]).content
            found.content[SECURE]["content"] = content
        return found

    f.ask = ask
    found, _ = f.round()
    np.testing.assert_allclose(found, f.expected([2]), rtol=0, atol=1e-6)
    said = f.of("reply-dropped")[0]["detail"]
    # Keys that were made for one message are of no use for another.
    assert ("another sum" if announced else "not what was announced") in said
    assert sorted(trained) == [0, 1, 3, 4, 5, 6]


def test_keys_for_another_message_are_not_in_a_cohort():
    f = masked.Federation(5)

    def ask(stage, node, found):
        if (stage, node) == ("keys", 2):
            found.content[SECURE]["content"] = "0" * 64
        return found

    f.ask = ask
    found, _ = f.round()
    assert f.codes() == ["content"]
    np.testing.assert_allclose(found, f.expected([2]), rtol=0, atol=1e-6)


def test_another_configuration_makes_no_room_for_a_second_sum_of_a_model():
    class Rates(ServerSGD):
        def configure_train(self, server_round, arrays, config, grid):
            config["lr"] = 0.1 * server_round
            return super().configure_train(server_round, arrays, config, grid)

    f = masked.Federation(7, inner=Rates)
    assert f.round()[0] is not None
    f.gone = {"mask": [3]}  # the same model, another rate and without one node
    assert f.round() == (None, None)
    assert "another sum with some of these nodes" in f.of("reply-dropped")[-1]["detail"]
    f.gone = {}
    assert f.round()[0] is not None  # the same nodes


def test_the_same_weights_written_otherwise_make_no_room_for_a_second_sum():
    f = masked.Federation(7)
    assert f.round()[0] is not None
    f.gone, again = {"mask": [3]}, ArrayRecord()
    for name, x in f.arrays.items():
        data = io.BytesIO()
        np.lib.format.write_array(data, x.numpy(), version=(2, 0))
        again[name] = Array(x.dtype, x.shape, x.stype, data.getvalue())
    f.arrays = again
    assert f.round() == (None, None)
    assert "another sum with some of these nodes" in f.of("reply-dropped")[-1]["detail"]


@pytest.mark.parametrize("layer", ["he", "secagg"])
def test_a_strategy_that_singles_a_node_out_stops_the_run(layer):
    class Partial(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            found = list(super().configure_train(server_round, arrays, config, grid))
            changed = {**found[0].content, "config": ConfigRecord({"lr": 0.0})}
            found[0].content = RecordDict(changed)
            return found

    if layer == "he":
        begin = support.Round(SCHEMES["bfv"], 4, inner=Partial()).ask
    else:
        begin = masked.Federation(4, inner=Partial).begin
    with pytest.raises(RunError, match=r"different messages \(record 'config'\)"):
        begin()


def test_nodes_under_another_job_are_left_out():
    f = masked.Federation(5)
    other = f.job.replace({"train.lr": 0.5})
    real = masked.secagg_mod

    def made(job):
        def mod(found, context, call_next):
            odd = int(context.node_config["partition-id"]) == 2
            return real(other if odd else job)(found, context, call_next)

        return mod

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked, "secagg_mod", made)
        found, _ = f.round()
    assert f.codes() == ["parameters"]
    np.testing.assert_allclose(found, f.expected([2]), rtol=0, atol=1e-6)
