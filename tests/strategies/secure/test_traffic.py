"""What an eavesdropper has: captured messages tell nothing about the update."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.secure.keys import JobKey, parameters_of
from strategies.secure.quantise import Quantiser
from strategies.secure.slots import Slots
from strategies.secure.wire import FRAME, SECURE, open_head
from tests.strategies.secure.support import Round, job_of

JOBS = {
    "bfv": job_of("bfv"),
    "ckks": job_of("ckks"),
    "public": job_of("bfv", key_holder="decryptor"),
}
every_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
N = 4000


def captured(job):
    """The bodies of a real round's messages."""
    f = Round(job, 5)
    roster = None
    bodies = []
    for reply in f.replies():
        roster = f.layer.federation.roster
        data = reply.content[SECURE][FRAME]
        bodies.append(data[len(open_head(data, roster).head) :])
    return bodies


def sealer(job):
    key = JobKey.generate(parameters_of(job))
    p = key.parameters
    slots = Slots(Quantiser(1.0, p.bits, p.most), N)
    rng = np.random.default_rng(2)

    def seal(update):
        return slots.fill(update.astype(np.float32), 7, {}, "r", rng), key.cipher

    def body(update):
        q, cipher = seal(update)
        return np.frombuffer(cipher.encrypt(q), np.uint8)

    def in_clear(update):
        return np.frombuffer(seal(update)[0].tobytes(), np.uint8)

    return body, in_clear


def correlation(values, data):
    """Largest |correlation| of the values with any byte of as many equal pieces."""
    width = len(data) // len(values)
    pieces = data[: width * len(values)].reshape(len(values), width).astype(float)
    varied = [column for column in pieces.T if column.std() > 0]
    return max(abs(np.corrcoef(values, column)[0, 1]) for column in varied)


@every_job
def test_captured_bytes_do_not_correlate_with_the_update(job):
    # |r| of independent values is below 5.5 / sqrt(n) but once in 26 million; a few
    # dozen columns of 4000 values.
    body, in_clear = sealer(job)
    update = np.random.default_rng(1).uniform(-1, 1, N)
    assert correlation(update, body(update)) < 5.5 / np.sqrt(N)
    assert correlation(update, in_clear(update)) > 0.9  # the test can see


@every_job
def test_bytes_are_spread_evenly_but_for_the_highest_of_a_coefficient(job):
    # Chi-square of 256 values in the low bytes: 255 degrees of freedom, 6 deviations.
    body, _ = sealer(job)
    data = body(np.zeros(N))[: 4 * 4096]
    counts = np.bincount(data.reshape(-1, 4)[:, :3].ravel(), minlength=256)
    expected = counts.sum() / 256
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 255) < 6 * np.sqrt(2 * 255)


@every_job
def test_the_same_update_twice_gives_unrelated_bytes(job):
    body, in_clear = sealer(job)
    update = np.linspace(-1, 1, N)
    one, two = body(update), body(update)
    # Every byte agrees once in 256, the narrow highest ones more often.
    same = (one == two)[: 4 * 4096].mean()
    assert abs(same - 1 / 256) < 6 * np.sqrt(1 / 256 / (4 * 4096))
    assert one[-64:].tobytes() != two[-64:].tobytes()
    assert (in_clear(update) == in_clear(update)).mean() > 0.7


def accuracy(make, a, b, each):
    """Of a classifier by the nearer mean of byte counts, trained on half of them."""
    rows = []
    for update in (a, b):
        data = [make(update) for _ in range(each)]
        lengths = [[len(x)] for x in data]
        counts = [np.bincount(x, minlength=256) for x in data]
        rows.append(np.hstack([counts, lengths]).astype(float))
    half = each // 2
    means = [row[:half].mean(0) for row in rows]
    right = 0
    for label, row in enumerate(rows):
        away = [((row[half:] - mean) ** 2).sum(1) for mean in means]
        right += int((np.argmin(away, axis=0) == label).sum())
    return right / (2 * (each - half))


@every_job
def test_nobody_tells_two_updates_apart(job):
    # 150 guesses: 5 deviations of a fair coin are 0.204.
    body, in_clear = sealer(job)
    a, b = np.zeros(N), np.ones(N)
    assert abs(accuracy(body, a, b, 150) - 0.5) < 0.204
    assert accuracy(in_clear, a, b, 20) > 0.95


@every_job
def test_messages_of_a_round_are_of_one_length_and_all_different(job):
    bodies = captured(job)
    assert len({len(body) for body in bodies}) == 1
    assert len(set(bodies)) == len(bodies)
    assert len(bodies[0]) <= parameters_of(job).most_bytes(40)
