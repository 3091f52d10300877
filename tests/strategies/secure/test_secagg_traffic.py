"""What is on the wire of secure aggregation tells nothing of the updates."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.secure.wire import SECURE
from tests.strategies.secure.masked import (
    STEPS,
    federation,
    stage_of,
)
from tests.support.federation import model


def bodies(f):
    """Return the masked updates of a round, by node."""
    size = sum(int(np.prod(a.shape)) for a in f.arrays.values())
    slots = f.layer.settings.slots({"values": size, "metrics": ["train-loss"]})
    return {
        node: np.frombuffer(frame[-4 * slots.size :], "<u4")[:size]
        for stage, node, frame in f.sent
        if stage == "mask"
    }


def wide(nodes=4):
    f = federation(nodes)
    f.arrays = model(0.5, {"w": (20_000,)})
    return f


def test_masked_updates_are_unrelated_to_the_updates_and_to_each_other():
    f = wide()
    f.round()
    one = bodies(f)
    f.sent.clear()
    f.round()
    two = bodies(f)
    rows = [x.astype(float) for x in (*one.values(), *two.values())]
    assert len(rows) == 8
    # Every update is the same value 20000 times; correlations are below 5 deviations.
    ramp = np.arange(20_000.0)
    for i, x in enumerate(rows):
        assert abs(np.corrcoef(x, ramp)[0, 1]) < 5 / np.sqrt(20_000)
        assert len(np.unique(x)) > 19_900
        for y in rows[:i]:
            assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("masked", [True, False])
def test_nobody_can_tell_two_updates_apart(masked, monkeypatch):
    """60 rounds, one of two updates each; every guess is right as often as a coin.

    A coin is right fewer than 15 or more than 45 times of 60 with probability 8e-5.
    """
    if not masked:  # negative control: without masks every guess is right
        place = "strategies.secure.secagg_client.add_masks"
        monkeypatch.setattr(place, lambda values, masks: None)
    coins = np.random.default_rng(1).integers(0, 2, 60 if masked else 5)
    f, right = federation(3), np.zeros(3)
    for number, coin in enumerate(coins):
        monkeypatch.setitem(STEPS, 0, (-0.9, 0.9)[coin])
        f.arrays = model(0.01 * number)
        f.sent.clear()
        f.round()
        x = bodies(f)[0].astype(float)
        zero = f.layer.settings.quantiser.half if not masked else 2**31
        right += np.equal([x.mean() > zero, x[0] > zero, np.median(x) > zero], coin)
    if masked:
        assert np.all((right >= 15) & (right <= 45))
    else:
        assert np.all(right == 5)


def test_requests_of_stages_are_train_messages():
    f = federation(3)
    messages = f.begin()
    assert {m.metadata.message_type for m in messages} == {"train"}
    assert {stage_of(m) for m in messages} == {"mask"}
    assert len({bytes(m.content[SECURE]["body"]) for m in messages}) == 3
