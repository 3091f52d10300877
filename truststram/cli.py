"""The ``truststram`` command.

A mistake is one or more red lines on standard error, never a traceback. Exit codes: 0
a completed run, 1 a run that failed or data that cannot be used, 2 a job or an option
that is refused before anything starts, 130 Ctrl-C.
"""

# What takes time to import (Flower, torch, rich's tables) is imported where it is used:
# `truststram --help` answers at once.

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from . import __version__
from ._console import print_rich, run_folder
from ._locate import app_module
from ._options import key_table, read_options, to_toml
from .errors import ConfigError, TrustStramError
from .job import keys
from .keytool import app as key_files
from .privacy.cli import app as privacy

if TYPE_CHECKING:
    import click

__all__ = ["app", "main"]


class _Group(TyperGroup):
    """Turns our errors into red lines and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TrustStramError as error:
            code = 2 if isinstance(error, ConfigError) else 1
            lines = str(error).splitlines() or [type(error).__name__]
        except KeyboardInterrupt as stop:
            code, lines = 130, ["Stopped.", *getattr(stop, "__notes__", [])]
        for line in lines:
            typer.secho(line, fg=typer.colors.RED, err=True)
        raise typer.Exit(code)


def _examples(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(lines)


app = typer.Typer(
    cls=_Group,
    help="Federated learning for private data and hostile clients, on Flower.",
    epilog=_examples(
        "truststram run                            ten nodes in this process",
        "truststram run -c train.rounds=5 -c data.alpha=0.1",
        "truststram run --engine flower --nodes 4  on a Flower simulation",
        "truststram run --resume ID                continue an interrupted run",
        "truststram show ID                        its table again",
        "truststram config --section train         what can be set",
        "truststram privacy plan -c privacy.mechanism=auto",
        "truststram tff compile job.toml -o job.tffplan",
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


analyze = typer.Typer(
    help="Look into finished runs.",
    no_args_is_help=True,
    epilog=_examples("truststram analyze connectivity RUN-A RUN-B"),
)
app.add_typer(analyze, name="analyze")
app.add_typer(key_files, name="keys")
app.add_typer(privacy, name="privacy")
app.add_typer(app_module("tff_bridge.cli").app, name="tff")


def main() -> None:
    """Run the command line; the entry point of ``truststram``."""
    app(prog_name="truststram")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"truststram {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    pass  # options before a command; no docstring, which would be its help


@app.command(
    epilog=_examples(
        "truststram run -c train.rounds=5 -c train.lr=0.05",
        "truststram run --config job.toml --nodes 50 --threads 2",
        "truststram run --engine flower --nodes 4",
        "truststram run --resume 20261121-203012-digits -c train.rounds=40",
    )
)
def run(
    engine: Annotated[
        Literal["local", "flower"],
        typer.Option(
            help="local: the nodes in this process. flower: a Flower simulation in "
            "processes of its own, all stopped at the end."
        ),
    ] = "local",
    nodes: Annotated[int, typer.Option(help="Number of simulated nodes.")] = 10,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "-c",
            metavar="KEY=VALUE",
            help="Set one key; may be repeated. See: truststram config",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="Keys or sections in a file; -c comes after it."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Continue an interrupted run with its settings."
        ),
    ] = None,
    dir: Annotated[
        Path | None, typer.Option(help="Folder of all runs. Default: ./runs")
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Nodes that train at the same time (local).")
    ] = 1,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print errors only.")
    ] = False,
) -> None:
    """Run a job with simulated nodes; show its progress and its table."""
    from . import runner

    given = read_options(config, changes or [], resume)
    result = runner.run(
        given,
        engine=engine,
        nodes=nodes,
        threads=threads,
        progress=not quiet,
        dir=dir,
    )
    if not quiet:
        from .summary import summary

        print_rich(summary(result))


@app.command()
def tasks() -> None:
    """List the tasks that this machine knows."""
    from .tasks import available_tasks

    known = available_tasks()
    width = max(map(len, known), default=0)
    for name, description in known.items():
        typer.echo(f"{name:{width}}  {description}")


@app.command()
def config(
    toml: Annotated[
        bool,
        typer.Option(
            "--toml", help="All keys with their defaults, as pyproject.toml has them."
        ),
    ] = False,
    section: Annotated[
        str | None, typer.Option(metavar="S", help="One section, such as train.")
    ] = None,
) -> None:
    """Show every key of a job: default, accepted values, meaning."""
    chosen = [k for k in keys() if section in (None, k.name.partition(".")[0])]
    if not chosen:
        names = ", ".join(dict.fromkeys(k.name.partition(".")[0] for k in keys()))
        raise ConfigError(f"Unknown section {section}: expected one of {names}.")
    if toml:
        typer.echo("[tool.flwr.app.config]")
        typer.echo(to_toml({key.name: key.default for key in chosen}), nl=False)
    else:
        print_rich(key_table(chosen))


@app.command()
def show(
    run: Annotated[str, typer.Argument(metavar="ID|DIR", help="A run or its folder.")],
    dir: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
) -> None:
    """Show the table of a run again, from its verified events."""
    from . import events
    from .result import RunResult
    from .summary import summary

    folder = run_folder(run, dir)
    log = events.read(folder / "events.jsonl")
    print_rich(summary(RunResult.of(log, folder)))
    typer.echo(f"Events: {len(log)}, hash chain verified")


@analyze.command()
def connectivity(
    a: Annotated[str, typer.Argument(metavar="A", help="A finished run.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, same task.")],
    dir: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    steps: Annotated[int, typer.Option(help="SGD steps for the curve.")] = 300,
) -> None:
    """Compare two final models: whether a path of low loss leads from one to the other.

    Writes connectivity.json and connectivity.png into the folder of B.
    """
    from .connectivity import connectivity as compare
    from .connectivity import write
    from .result import RunResult

    first, last = (RunResult.read(run_folder(name, dir)) for name in (a, b))
    found = compare(first, last, steps=steps)
    data, picture = write(found, first.id, last.id, last.dir)
    typer.echo(f"Loss at A {found.line_loss[0]:.4f}, at B {found.line_loss[-1]:.4f}")
    typer.echo(f"Barrier on the straight line: {found.line_barrier:+.4f}")
    typer.echo(f"Barrier on the trained curve: {found.curve_barrier:+.4f}")
    typer.echo(f"Files: {data}, {picture}")


if __name__ == "__main__":
    main()
