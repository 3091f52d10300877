"""What is said of a failure on a node: its own words for the server, or nothing."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from strategies.mechanisms.mod import private_mod
from strategies.secure.contribution import reported
from strategies.update import delta_mod
from strategies.withheld import WithheldError, withheld
from tests.strategies.mechanisms.test_spending import LOCAL, started
from tests.support.federation import model, plus, reply_content
from truststram._flower import set_message_id
from truststram.job import Job


def failing(error):
    def app(found, context):
        raise error

    return app


def test_nothing_is_said_of_what_may_tell_of_data():
    with pytest.raises(WithheldError, match="the reason stays on the node") as told:
        withheld(None, None, failing(ValueError("a patient's name")))
    assert "patient" not in str(told.value)
    assert told.value.__context__ is None


def test_what_is_made_for_the_server_is_said_through_every_mod_outside():
    def inner(found, context):
        return withheld(found, context, failing(WithheldError("the budget is spent")))

    for what in ("training", "evaluation"):
        with pytest.raises(WithheldError, match=r"^the budget is spent$"):
            withheld(None, None, inner, what)


def asked(context):
    """Ask a node of a secure sum, in a run of two rounds with local noise."""
    content = {"arrays": model(0.5), "config": ConfigRecord({"run-name": "first"})}
    message = Message(RecordDict(content), 7, "train")
    set_message_id(message)

    def app(found, context):
        return Message(
            reply_content(plus(found.content["arrays"], 0.1)), reply_to=found
        )

    def inside(found, context):
        made = private_mod(Job.of(LOCAL))
        return made(found, context, lambda m, c: delta_mod(m, c, app))

    return reported(message, context, inside)


def test_a_node_of_a_secure_sum_says_that_its_budget_is_spent(tmp_path):
    for _ in range(2):
        assert "metrics" in asked(started(tmp_path))
    with pytest.raises(WithheldError, match="privacy budget is spent after 2"):
        asked(started(tmp_path))


def test_a_node_of_a_secure_sum_says_that_its_count_is_damaged(tmp_path):
    asked(started(tmp_path))
    [count] = [path for path in tmp_path.rglob("count") if path.is_file()]
    count.write_bytes(b"?")
    with pytest.raises(WithheldError, match="count of releases is damaged"):
        asked(started(tmp_path))
