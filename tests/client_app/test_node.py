"""What a node's operator pins: the server's run config cannot ask for less."""

from __future__ import annotations

import pytest
from flwr.app import ArrayRecord, Message, RecordDict

from client_app.mods import stack_mod
from client_app.node import permit
from truststram._flower import make_context
from truststram.errors import ConfigError
from truststram.job import Job

NONE = {"secure.scheme": "none"}
SECAGG = {"secure.scheme": "secagg", "secure.min-cohort": 10}
MALICIOUS = {**SECAGG, "secure.threat": "malicious"}
BFV = {"secure.scheme": "bfv"}
CHANGING = {**SECAGG, "secure.group-size": 10, "secure.regroup": True}


@pytest.mark.parametrize(
    ("pins", "job", "reason"),
    [
        ({}, NONE, None),
        ({}, {**BFV, "secure.layers": "fc*"}, None),
        ({"secure-schemes": "secagg"}, SECAGG, None),
        ({"secure-schemes": "bfv, secagg"}, SECAGG, None),
        ({"secure-schemes": "none,secagg"}, NONE, None),
        ({"secure-schemes": "secagg"}, NONE, "scheme = none; this node allows secagg"),
        ({"secure-schemes": "secagg"}, BFV, "scheme = bfv; this node allows secagg"),
        ({"secure-schemes": ""}, SECAGG, "scheme = secagg"),
        ({"secure-threat": "semi-honest"}, SECAGG, None),
        ({"secure-threat": "semi-honest"}, MALICIOUS, None),
        ({"secure-threat": "semi-honest"}, NONE, "no secure sum"),
        ({"secure-threat": "malicious"}, MALICIOUS, None),
        ({"secure-threat": "malicious"}, SECAGG, "threat = semi-honest"),
        ({"secure-threat": "malicious"}, NONE, "no secure sum"),
        ({"secure-threat": "honest"}, MALICIOUS, "expected semi-honest or malicious"),
        ({"secure-min-cohort": 10}, SECAGG, None),
        ({"secure-min-cohort": 11}, SECAGG, "min-cohort = 10; this node allows 11"),
        ({"secure-min-cohort": 3}, NONE, "no secure sum"),
        ({"secure-schemes": "none", "secure-min-cohort": 3}, NONE, "no secure sum"),
        ({"secure-schemes": "bfv"}, {**BFV, "secure.layers": "fc*"}, "in clear"),
        ({}, CHANGING, None),
        ({"secure-schemes": "secagg"}, CHANGING, "secure-regroup = true"),
        ({"secure-threat": "semi-honest"}, CHANGING, "secure-regroup = true"),
        ({"secure-min-cohort": 10}, CHANGING, "secure-regroup = true"),
        ({"secure-schemes": "secagg", "secure-regroup": True}, CHANGING, None),
        ({"secure-schemes": "secagg", "secure-regroup": "true"}, CHANGING, None),
        ({"secure-schemes": "secagg", "secure-regroup": "false"}, CHANGING, "groups"),
    ],
)
def test_a_job_below_what_the_operator_pinned_is_refused(pins, job, reason):
    context = make_context(7, pins, {})
    if reason is None:
        permit(Job.of(job), context)
        return
    with pytest.raises(ConfigError, match=reason):
        permit(Job.of(job), context)


@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
def test_no_message_passes_before_the_pins_were_looked_at(kind):
    context = make_context(7, {"secure-schemes": "secagg"}, Job().config())
    message = Message(RecordDict({"arrays": ArrayRecord()}), 7, kind)

    def never(*_):
        raise AssertionError("the node answered")

    with pytest.raises(ConfigError, match="this node allows secagg"):
        stack_mod(message, context, never)
