"""``truststram tff``: what a user reads, and exit codes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tests.tff_bridge.numpy_plan import evaluation, leaf, plan_of
from tests.tff_bridge.sealed_plan import sealed_plan
from tff_bridge import compiler
from tff_bridge.capabilities import CAPABILITIES
from truststram._plan import full_job
from truststram.cli import app
from truststram.errors import ConfigError, RunError


def tff(*arguments: object):
    return CliRunner().invoke(app, ["tff", *map(str, arguments)])


@pytest.fixture
def path(tmp_path):
    plan_of().write(tmp_path / "job.tffplan")
    return tmp_path / "job.tffplan"


def test_inspect_shows_what_an_operator_pins(path):
    shown = tff("inspect", path).output
    assert f"sha256:     {plan_of().sha256}" in shown
    for words in ("fed-avg", "3 x 6", "metric", "weight", "all allowed", "here:  yes"):
        assert words in shown


def test_inspect_says_with_what_silos_evaluate(tmp_path, path):
    reason = "the plan was compiled without tff.evaluation"
    assert f"no, silos do with torch: {reason}" in tff("inspect", path).output
    assert json.loads(tff("inspect", path, "--json").output)["evaluation"] == [reason]
    plan_of(evaluate=evaluation()).write(tmp_path / "x")
    assert "Evaluates:  yes" in tff("inspect", tmp_path / "x").output
    reason = "nodes of a secure sum are not asked"
    sealed_plan(evaluate=evaluation()).write(tmp_path / "x")
    assert f"Evaluates:  no, {reason}" in tff("inspect", tmp_path / "x").output
    found = json.loads(tff("inspect", tmp_path / "x", "--json").output)
    assert found["evaluation"] == [reason]


def test_inspect_says_why_a_plan_is_no_round_of_ours(tmp_path):
    encoded = [leaf((3,), "uint8", role="encoded")]
    plan_of(leaves=encoded).write(tmp_path / "x")
    assert "the plan encodes updates by itself" in tff("inspect", tmp_path / "x").output


def test_inspect_says_which_setting_a_plan_needs(tmp_path, path):
    needed = "secure.scheme = secagg"
    sealed_plan().write(tmp_path / "x")
    assert f"Runs here:  yes, with {needed}" in tff("inspect", tmp_path / "x").output
    found = json.loads(tff("inspect", tmp_path / "x", "--json").output)
    assert (found["obstacles"], found["needs"]) == ([], needed)
    assert json.loads(tff("inspect", path, "--json").output)["needs"] == ""


def test_inspect_shows_untrusted_names_as_they_are(tmp_path):
    odd = leaf(role="metric", path="[red]a[/b][link=x]")
    plan_of(more=[odd]).write(tmp_path / "x")
    result = tff("inspect", tmp_path / "x")
    assert result.exit_code == 0
    assert "[red]a[/b][link=x]" in result.output


def test_inspect_as_json(path):
    found = json.loads(tff("inspect", path, "--json").output)
    assert found["sha256"] == plan_of().sha256
    assert found["bytes"] == path.stat().st_size
    train = found["programs"]["train"]
    assert [x["role"] for x in train["sent"]] == [
        *("metric", "metric", "update", "update", "weight"),
    ]
    assert train["pieces"]["work"] == {
        "bytes": 0,
        "nodes": 0,
        "inputs": 4,
        "outputs": 5,
    }
    assert (found["ops"], found["obstacles"]) == ([], [])


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 no plan"])
def test_what_is_no_plan_is_one_red_line(tmp_path, content):
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    result = tff("inspect", tmp_path / "x")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_compile_writes_the_plan_and_tells_its_hash(tmp_path, monkeypatch):
    seen = {}

    def compiled(job, **options):
        seen.update(options, algorithm=job.spec()["tff.algorithm"])
        return plan_of()

    monkeypatch.setattr(compiler, "compile_job", compiled)
    (tmp_path / "job.toml").write_text('tff.algorithm = "fed-sgd"\n')
    options = ("--cache", tmp_path / "kept", "--time-limit", 5)
    result = tff("compile", tmp_path / "job.toml", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0
    assert plan_of().sha256 in result.output
    assert (tmp_path / "out").read_bytes() == plan_of().to_bytes()
    assert seen == {
        "cache": tmp_path / "kept",
        "time_limit": 5.0,
        "algorithm": "fed-sgd",
    }
    result = tff("compile", tmp_path / "job.toml", "-o", tmp_path / "no" / "folder")
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("text", "error", "code"),
    [
        ("tff.algorithm = 3", None, 2),
        ("", ConfigError("no translation"), 2),
        ("", RunError("uv is missing"), 1),
    ],
)
def test_a_job_that_cannot_be_compiled_is_told(
    tmp_path, monkeypatch, text, error, code
):
    def fails(job, **options):
        raise error

    monkeypatch.setattr(compiler, "compile_job", fails)
    (tmp_path / "job.toml").write_text(text)
    result = tff("compile", tmp_path / "job.toml", "-o", tmp_path / "out")
    assert result.exit_code == code
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_capabilities_lists_the_whole_table():
    rows = json.loads(tff("capabilities", "--json").output)
    assert len(rows) == len(CAPABILITIES)
    assert "mime-lite" in tff("capabilities").output


def test_help_teaches_the_way_from_job_to_run():
    assert "truststram run -c tff.plan=job.tffplan" in tff("--help").output
    assert "proximal" in tff("compile", "--help").output


def test_a_run_takes_from_a_plan_what_was_compiled_into_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = full_job({"tff.plan": "job.tffplan"}, tmp_path)
    assert job.tff.plan == str(path)
    assert job.task.name == "tiny"
    assert (job.train.batch_size, job.train.local_epochs) == (8, 2)
    given = full_job({"tff.plan": "job.tffplan", "train.batch-size": 4}, tmp_path)
    assert given.train.batch_size == 4  # refused later, in words
    with pytest.raises(ConfigError, match=r"tff\.plan = .*: No such file"):
        full_job({"tff.plan": "other"}, tmp_path)
