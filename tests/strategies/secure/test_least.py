"""No sum has fewer than three nodes that do not collude, whoever runs the app.

A stock Flower app with these layers and mods does not call ``stack.check``.
"""

from __future__ import annotations

import pytest

from strategies.secure.sizes import least_nodes
from strategies.secure.terms import terms_of
from strategies.secure.trust import trust_line
from tests.strategies.secure import masked, parties, support
from truststram.errors import ProtocolError


@pytest.mark.parametrize(
    ("cohort", "colluders", "least"),
    [(3, 0, 3), (3, 1, 4), (3, 2, 5), (5, 2, 5), (9, 2, 9)],
)
def test_the_least_is_what_is_said_and_three_more_than_collude(
    cohort, colluders, least
):
    keys = {"secure.min-cohort": cohort, "secure.colluders": colluders}
    for job in (masked.job_of(**keys), support.job_of("bfv", **keys)):
        assert job.secure.least == least
        assert f"at least {least} nodes" in trust_line(job)
        assert least_nodes(job.replace({"round.min-nodes": 2})) == least
    assert terms_of(job).least == least


@masked.THREATS
def test_masked_sums_need_as_many(threat):
    keys = {"secure.colluders": 2, "secure.threat": threat}
    enough = 7 if threat == masked.MALICIOUS else 5
    f = masked.Federation(enough, **keys)
    assert f.round()[0] is not None
    assert f.of("secure-sum")[0]["clients"] == enough
    f.gone, f.arrays = {"keys": [0, 1, 2]}, masked.model(0.7)
    assert f.round()[0] is None
    assert masked.Federation(3, **keys).round()[0] is None
    f = masked.Federation(7, **keys)
    f.gone = {"mask": [0, 1, 2]}
    assert f.round()[0] is None


def test_keys_are_not_exchanged_where_the_colluders_could_open_shares():
    session = parties.session(min_cohort=6, colluders=3)
    session.check_size(7)
    with pytest.raises(ProtocolError, match=r"^cohort-size: .*3 that collude"):
        session.check_size(6)


@pytest.mark.parametrize("decryptor", [False, True])
def test_encrypted_sums_need_as_many(decryptor):
    keys = {"key_holder": "decryptor"} if decryptor else {}
    job = support.job_of("bfv", **{"secure.colluders": 2, **keys})
    assert support.Round(job, 5 + decryptor).run()[0] is not None
    assert support.Round(job, 3 + decryptor).run()[0] is None
    f = support.Round(job, 5 + decryptor)
    assert f.finish(f.replies()[:-1])[0] is None
    # The server's word alone does not make it one: who decrypts sees to it.
    f = support.Round(job, 5 + decryptor)
    replies = f.replies()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(f.layer), "_is_enough", lambda *_: True)
        assert f.finish(replies[:-1])[0] is None
    assert "cohort-size" in f.told("secure-refused")[-1]["detail"]
