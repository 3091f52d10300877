"""``truststram privacy``: before a run, on the software, and after a run."""

# As in :mod:`truststram.cli`: what takes time to import is imported where it is used.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._console import print_json, print_rich, run_folder
from .._options import read_options
from ..errors import ConfigError
from ..job import Job

if TYPE_CHECKING:
    from rich.table import Table

    from .audit import Audit

__all__ = ["app"]

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "-c",
        metavar="KEY=VALUE",
        help="Set one key; may be repeated. See: truststram config --section privacy",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml", help="Keys or sections in a file; -c comes after it."
    ),
]
Runs = Annotated[Path, typer.Option(help="Folder of all runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    help="What a privacy budget means, whether it is kept, what a run guarantees.",
    no_args_is_help=True,
)


@app.command(
    epilog="Example:\n\ntruststram privacy plan -c privacy.mechanism=auto "
    "-c privacy.epsilon=4 --nodes 200"
)
def plan(
    changes: Changes = None,
    config: Config = None,
    nodes: Annotated[int, typer.Option(help="Registered nodes.")] = 10,
    shuffled: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Say as well what local noise would gain if another party mixed the "
            "replies of N honest nodes. There is none in this version.",
        ),
    ] = 0,
    json: Json = False,
) -> None:
    """Before a run: its guarantee, the noise of every mechanism, and if it can work."""
    from .plan import preview
    from .plan_text import lines

    job = Job.of(read_options(config, changes or [], None))
    content = preview(job, nodes, shuffled)
    if json:
        print_json(content)
        return
    first, guarantee, *rest = lines(content)
    for line in (first, guarantee):
        print_rich(line)
    print_rich(_noise_table(content))
    for line in rest:
        print_rich(line)


@app.command(
    epilog="Examples:\n\ntruststram privacy audit -c privacy.mechanism=gaussian\n\n"
    "truststram privacy audit 20261121-203012-digits"
)
def audit(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID|DIR]",
            help="A finished run to attack as well: its settings are audited, members "
            "are looked for in its model, and an input in an update.",
        ),
    ] = None,
    changes: Changes = None,
    config: Config = None,
    canaries: Annotated[int, typer.Option(help="Canary clients.")] = 20_000,
    dimension: Annotated[
        int | None,
        typer.Option(
            help="Values in the audited model. Default: one for each canary; for "
            "staircase noise one alone, which takes longer."
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="That an honest server passes.")
    ] = 0.95,
    json: Json = False,
    dir: Runs = Path("runs"),
) -> None:
    """Bound epsilon from below by a game against the real server.

    The exit code is 1 if the bound exceeds the claim.
    """
    from . import audit as audits
    from . import finished

    options = {"canaries": canaries, "dimension": dimension, "beta": 1 - confidence}
    if run is None:
        found = audits.audit(_audited(config, changes or []), **options)  # type: ignore[arg-type]  # keywords of audit
        _show_audit(found, {"canaries": found.as_dict()}, json)
        return
    if changes or config:
        raise ConfigError("A run has its own settings: give a run, or -c and --config.")
    past = finished.Finished.read(run_folder(run, dir))
    keys, game = past.job.privacy, None
    if keys.central and keys.unit == "client":
        game = audits.audit(past.job, **options)  # type: ignore[arg-type]  # keywords of audit
    content = {"canaries": game.as_dict()} if game else {}
    content |= finished.attacked(past)
    finished.save(past, content)
    _show_audit(game, content, json)


@app.command(epilog="Example:\n\ntruststram privacy report ID --markdown > privacy.md")
def report(
    run: Annotated[str, typer.Argument(metavar="ID|DIR", help="A run or its folder.")],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown.")
    ] = False,
    json: Json = False,
    dir: Runs = Path("runs"),
) -> None:
    """Show what a run guarantees, from its verified events and its ledger."""
    from . import report as reports
    from .finished import Finished

    if markdown and json:
        raise ConfigError("--markdown and --json: give one.")
    content = reports.report(Finished.read(run_folder(run, dir)))
    if json:
        print_json(content)
    elif markdown:
        typer.echo(reports.markdown(content), nl=False)
    else:
        from rich.markdown import Markdown

        print_rich(Markdown(reports.markdown(content)))


def _audited(config: Path | None, changes: list[str]) -> Job:
    """Return the job to audit; Gaussian noise if nothing is said."""
    if not config and not any("privacy.mechanism" in change for change in changes):
        changes = ["privacy.mechanism=gaussian", *changes]
    return Job.of(read_options(config, changes, None))


def _show_audit(game: Audit | None, content: Mapping[str, Any], json: bool) -> None:
    """Print what was found; end with code 1 if a claim is false."""
    from .report import audit_lines

    if json:
        print_json(content)
    else:
        if game:
            print_rich(_bounds_table(game))
        for line in audit_lines(content):
            print_rich(line)
    if game and not game.ok:
        raise typer.Exit(1)


def _table(*titles: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title)
    return table


def _noise_table(content: Mapping[str, Any]) -> Table:
    """Return the mechanisms, or the nodes, of a plan."""
    if "per-node" in content:
        table = _table("examples", "steps", "rate", "noise multiplier", "noise/signal")
        for row in content["per-node"]:
            table.add_row(*(f"{value:.4g}" for value in row.values()))
        return table
    table = _table("mechanism", "std, in clips", "to the best", "noise/signal", "")
    for row in content["mechanisms"]:
        values = (row["std"], row["ratio"], row["noise-to-signal"])
        chosen = "used" if row["mechanism"] == content["mechanism"] else ""
        shown = chosen or ("" if row["admissible"] else f"no: {row['why-not']}")
        table.add_row(row["mechanism"], *(f"{value:.4g}" for value in values), shown)
    return table


def _bounds_table(game: Audit) -> Table:
    table = _table(
        "what was looked at", "assuming", "right guesses", "epsilon at least"
    )
    for bound in game.bounds:
        right = f"{bound.right:,} of {bound.guesses:,}"
        table.add_row(bound.output, bound.assumption, right, f"{bound.epsilon:.3f}")
    table.add_section()
    table.add_row("the claim", "", "", f"{game.claim:.3f}")
    return table
