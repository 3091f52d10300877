"""What a finished run guarantees: a projection of its verified events and record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .. import techniques
from ..errors import CheckpointError
from .finished import Finished

__all__ = ["markdown", "report"]

# Relative difference between an event, which is rounded, and the ledger.
CLOSE = 1e-3

EVERYWHERE = (
    "Who is registered, when messages were sent and how long training took.",
    "Settings that were chosen after looking at private data: the initial model, the "
    "clip, learning rates and the number of rounds must be public.",
    "The server's test data, on which every round may be evaluated: it must be public.",
)
CENTRAL = (
    "The server itself: it sees every single update, and who answered.",
    "The server's own events, which name nodes whose replies were dropped.",
)
ANEW = (
    "A count of releases that begins anew, which may cost the budget once more: that "
    "of a simulated node when a run is resumed, and that of a deployed one when its "
    "state folder is lost, it is restarted without Flower's authentication, or the "
    "server gives it another id or begins another Flower run under another name."
)
LOCAL = (
    "That a node takes part.",
    ANEW,
)
SHARES = (
    "That the secure sum hides single updates: each holds a share of the noise only.",
    "More nodes than secure.colluders that add no noise, or tell the server theirs.",
    ANEW,
    "Who takes part, and when messages were sent.",
)
EXAMPLES = (
    "The number of examples of a node, which sets its batches and its noise.",
    "People with several examples: with k of them, epsilon is up to k times as large.",
    "That a node takes part.",
    ANEW,
)


def report(run: Finished) -> dict[str, Any]:
    """Return the report of a run as JSON values.

    Raises
    ------
    CheckpointError
        If the ledger in the record does not add up.
    """
    job = run.job
    content: dict[str, Any] = {
        "run": run.result.id,
        "status": run.result.status,
        "events": len(run.log),
        "last-event": run.log[-1]["hash"],
        "private": job.privacy.on,
    }
    if not job.privacy.on:
        content["guarantee"] = (
            "None: privacy.mechanism = none. Whoever sees the models may learn about "
            "the data; whoever sees the updates, much more."
        )
        return {**content, "problems": [], "not-covered": [], "audit": run.audit}
    by_server = job.privacy.central or job.privacy.distributed
    about = _by_server(run) if by_server else _by_nodes(run)
    return {**content, **about, "audit": run.audit}


def _by_server(run: Finished) -> dict[str, Any]:
    """Return the part about noise in sums, for which the server keeps the ledger."""
    plans = run.of_kind("privacy-plan")
    # A round that ran again after a death counts as it was recorded.
    spent = {e["round"]: e for e in run.of_kind("privacy-spent")}
    rounds = [
        {"round": r, "spent": e.get("spent", e["epsilon"]), "clip": e["clip"]}
        for r, e in sorted(spent.items())
        if r <= run.round
    ]
    problems = []
    if run.ledger is None:
        problems.append("The round record holds no ledger: nothing was released.")
    if not all(plan["secure-noise"] for plan in plans) or run.job.privacy.insecure:
        problems.append(INSECURE)
    ledger = _restored(run)
    told = rounds[-1]["spent"] if rounds else 0.0
    if not math.isclose(told, ledger.spent(), rel_tol=CLOSE, abs_tol=1e-6):
        problems.append(
            f"The events say epsilon {told:g}, the ledger {ledger.spent():.6g}."
        )
    as_planned = not plans or run.round >= plans[-1]["rounds"]
    return {
        "guarantee": ledger.describe() + ("" if as_planned else EARLY),
        **_terms(run, ledger.claim(as_planned=as_planned), ledger.spent()),
        "mechanism": plans[-1]["mechanism"] if plans else run.job.privacy.mechanism,
        "noise-to-signal": plans[-1]["noise-to-signal"] if plans else None,
        "secure-noise": INSECURE not in problems,
        "rounds": rounds,
        "problems": problems,
        "not-covered": [
            *(SHARES if run.job.privacy.distributed else CENTRAL),
            *EVERYWHERE,
        ],
    }


EARLY = (
    " The run ended before its last planned round. That may have depended on what came "
    "out, so what may be claimed is the budget."
)
INSECURE = (
    "NOT PRIVATE: privacy.insecure was set, so the noise repeats with run.seed and can "
    "be subtracted. The numbers below are those of the same run with secure noise."
)


def _by_nodes(run: Finished) -> dict[str, Any]:
    """Return the part about noise that every node added and counts itself."""
    keys, done = run.job.privacy, len(run.result.rounds)
    examples = keys.unit == "example"
    if examples:
        said = (
            f"Unit: example. Relation: add-remove. Every node keeps its own account; "
            f"its noise is set so that all {run.job.train.rounds} rounds cost epsilon "
            f"<= {keys.epsilon:g} at delta = {keys.delta:g}. Trust model: local (each "
            "node adds its own noise before anything leaves it)."
        )
        claim, spent, mechanism = keys.epsilon, None, "gaussian"
    else:
        plan = techniques.Plan.of(run.job, 1, run.result.parameters)
        ledger = plan.ledger(run.job)
        for release, count in plan.charges(run.job, done).items():
            ledger.charge(release, count)
        as_planned = done >= plan.rounds
        said = f"A node that answered in all {done} rounds: {ledger.describe()}"
        said += "" if as_planned else EARLY
        claim, spent = ledger.claim(as_planned=as_planned), ledger.spent()
        mechanism = plan.release.mechanism
    return {
        "guarantee": said,
        **_terms(run, claim, spent),
        "mechanism": mechanism,
        "secure-noise": not keys.insecure,
        "rounds": [],
        "problems": [INSECURE] if keys.insecure else [],
        "not-covered": [*(EXAMPLES if examples else LOCAL), *EVERYWHERE],
    }


def _terms(run: Finished, claim: float, spent: float | None) -> dict[str, Any]:
    """Return what is guaranteed; ``epsilon`` is what may be claimed.

    ``spent`` is what the ledger counts, which is less if releases depended on earlier
    ones; None where each node keeps an account of its own steps.
    """
    keys = run.job.privacy
    return {
        "unit": keys.unit,
        "relation": keys.neighbours,
        "trust": _trust(run),
        "epsilon": claim,
        "spent": spent,
        "budget": keys.epsilon,
        "delta": keys.delta,
    }


def _trust(run: Finished) -> str:
    keys = run.job.privacy
    if keys.distributed:
        return "distributed"
    return "central" if keys.central else "local"


def _restored(run: Finished) -> Any:
    """Return the ledger of the last record; its sum is computed again."""
    keys = run.job.privacy
    ledger = techniques.Ledger(
        *(keys.epsilon, keys.delta, keys.schedule == "on-plateau"),
        relation=keys.neighbours,
        unit=keys.unit,
        trust=_trust(run),
    )
    if run.ledger is not None:
        try:
            ledger.load_state(run.ledger)
        except ValueError as error:
            raise CheckpointError(f"{run.result.dir}: {error}") from None
    return ledger


def markdown(content: Mapping[str, Any]) -> str:
    """Return a report as Markdown."""
    return "\n".join(_lines(content)) + "\n"


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    yield f"# Privacy of run {content['run']}"
    yield ""
    for problem in content["problems"]:
        yield f"> **{problem}**"
        yield ""
    yield content["guarantee"]
    yield ""
    if content["private"]:
        yield f"- Mechanism: {content['mechanism']}"
        yield (
            f"- Guaranteed: epsilon {content['epsilon']:.4g} at delta "
            f"{content['delta']:g}"
        )
        if content["spent"] is not None:
            yield f"- Spent: {content['spent']:.4g} of {content['budget']:g}"
        secure = "yes" if content["secure-noise"] else "NO"
        yield f"- Noise from a secure source: {secure}"
    yield f"- Status: {content['status']}; {content['events']} events, chain verified"
    yield f"- Last event: `{content['last-event']}`"
    if content.get("rounds"):
        yield from ("", "## Spent by round", "", "| round | spent | clip |")
        yield "|---:|---:|---:|"
        for row in content["rounds"]:
            yield f"| {row['round']} | {row['spent']:.4g} | {row['clip']:.4g} |"
    if content["not-covered"]:
        yield from ("", "## Not covered", "")
        yield from (f"- {line}" for line in content["not-covered"])
    if content["audit"]:
        yield from ("", "## Audit", "")
        yield from (f"- {line}" for line in audit_lines(content["audit"]))


def audit_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what an audit found, one line each; from its JSON values."""
    if canaries := found.get("canaries"):
        yield (
            f"{canaries['canaries']:,} canaries against {canaries['mechanism']} noise: "
            f"{canaries['verdict']}"
        )
    for attack in found.get("membership", ()):
        yield (
            f"Membership, {attack['name']}: AUC {attack['auc']:.3f} (chance 0.5 +- "
            f"{attack['spread']:.3f}), {attack['tpr']:.1%} of members found at 1 % "
            f"false accusations: {attack['verdict']}."
        )
    if shown := found.get("inversion"):
        yield _inversion_line(shown)


def _inversion_line(shown: Mapping[str, Any]) -> str:
    text = (
        f"Input read from the update of one example ({shown['layer']}): PSNR "
        f"{shown['plain']:.0f} dB from the bare update"
    )
    if shown["protected"] is not None:
        text += f", {shown['protected']:.1f} dB after {shown['noise']}"
    guess = f"a constant guess has {shown['guess']:.1f} dB"
    return f"{text} ({guess}): {shown['verdict']}."
