"""``truststram tff``: from a job to a plan, and what is in one."""

# As in truststram.cli: what takes time to import is imported where it is used.

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from truststram._console import print_json, print_rich
from truststram.errors import ConfigError, ProtocolError

if TYPE_CHECKING:
    from rich.table import Table

    from .plan import Plan

__all__ = ["app"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    help="Compile jobs with TensorFlow Federated; run them as plans over Flower.",
    no_args_is_help=True,
    epilog="Examples:\n\n"
    "truststram tff compile job.toml -o job.tffplan\n\n"
    "truststram tff inspect job.tffplan\n\n"
    "truststram run -c tff.plan=job.tffplan\n\n"
    "In a deployment every node's operator allows a plan by its hash, in the node's "
    'config: tff-plans="<sha256>".',
)


@app.command(
    epilog="Examples:\n\ntruststram tff compile job.toml -o job.tffplan\n\n"
    "A job names a task and what differs from the defaults:\n\n"
    'task.name = "breast-cancer"\n\ntrain.local-epochs = 2\n\n'
    'tff.algorithm = "fed-prox"\n\ntff.proximal = 0.01\n\n'
    "TensorFlow Federated runs in an environment of its own, which uv makes in the "
    "first call; TRUSTSTRAM_TFF_PYTHON names another one."
)
def compile(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The plan to write.")
    ],
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps plans by the hash of what made them."),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(help="Seconds for TensorFlow Federated.")
    ] = 900.0,
) -> None:
    """Compile a job's model and algorithm into a plan."""
    from .compiler import compile_job
    from .job import read_job

    plan = compile_job(read_job(job), cache=cache, time_limit=time_limit)
    try:
        plan.write(output)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}.") from error
    typer.echo(f"Plan:   {output}, {output.stat().st_size:,} bytes")
    typer.echo(f"sha256: {plan.sha256}")


@app.command(
    epilog="Examples:\n\ntruststram tff inspect job.tffplan\n\n"
    "truststram tff inspect job.tffplan --ops\n\n"
    "Nothing of the plan is executed, and TensorFlow is not needed."
)
def inspect(
    plan: Annotated[Path, typer.Argument(metavar="FILE", help="A plan.")],
    ops: Annotated[
        bool, typer.Option("--ops", help="List the operators of all graphs.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what is in a plan: job, pieces, what silos send, operators, hash."""
    from .plan import read_plan

    try:
        found = read_plan(plan)
    except OSError as error:
        raise ConfigError(f"{plan}: {error.strerror}.") from error
    except ProtocolError as error:
        raise ConfigError(f"{plan} is no plan that may be run: {error}") from error
    if json:
        print_json(content(found))
        return
    spec = found.job
    typer.echo(f"sha256:     {found.sha256}")
    typer.echo(f"Task:       {spec['task.name']}")
    for name, words in _summary(spec):
        typer.echo(f"{name + ':':11} {words}")
    typer.echo(f"Built with: {_pairs(found.built_with)}")
    print_rich(_pieces(found))
    for program in found.programs:
        print_rich(_sent(found, program))
    typer.echo(f"Operators:  {len(found.ops)}, all allowed")
    if ops:
        typer.echo(f"            {' '.join(found.ops)}")
    needs = f"yes, with {_needs(found)}" if _needs(found) else "yes"
    typer.echo(f"Runs here:  {'; '.join(_over_flower(found)) or needs}")
    if "train" in found.programs:
        reasons = "; ".join(_evaluation(found))
        others = "" if _needs(found) else "silos do with torch: "
        typer.echo(f"Evaluates:  {f'no, {others}{reasons}' if reasons else 'yes'}")


@app.command()
def capabilities(json: Json = False) -> None:
    """List what a job can have with TensorFlow Federated, and what only without."""
    from dataclasses import asdict

    from .capabilities import CAPABILITIES

    if json:
        print_json([asdict(row) for row in CAPABILITIES])
        return
    table = _table("what", "name", "runs", "how, or what to choose instead")
    for row in CAPABILITIES:
        table.add_row(row.kind, row.name, "yes" if row.runs else "no", row.how)
    print_rich(table)


def content(plan: Plan) -> dict[str, Any]:
    """Return what ``inspect --json`` prints."""
    from .graphdef import scan

    return {
        "sha256": plan.sha256,
        "bytes": len(plan.to_bytes()),
        "job": plan.job,
        "built-with": plan.built_with,
        "parameters": {name: list(shape) for name, shape in plan.parameters.items()},
        "privacy": plan.privacy,
        "programs": {
            name: {
                "pieces": {
                    piece: {
                        "bytes": len(made.graph),
                        "nodes": scan(made.graph).nodes,
                        "inputs": len(made.inputs),
                        "outputs": len(made.outputs),
                    }
                    for piece, made in program.pieces.items()
                },
                "sent": [
                    {
                        "path": leaf.path,
                        "role": leaf.role,
                        "slot": leaf.slot,
                        "bits": leaf.bits or None,
                        "dtype": leaf.dtype,
                        "shape": list(leaf.shape),
                    }
                    for leaf in program.sent
                ],
                "additive": program.additive,
            }
            for name, program in plan.programs.items()
        },
        "ops": list(plan.ops),
        "obstacles": _over_flower(plan),
        "needs": _needs(plan),
        "evaluation": _evaluation(plan),
    }


def _summary(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the job in words, as far as it has a training."""
    if spec.get("tff.computation"):
        return [("Computes", str(spec["tff.computation"]))]
    optimizer = f"{spec['server.optimizer']}, lr {spec['server.lr']:g}"
    if spec["server.momentum"]:
        optimizer += f", momentum {spec['server.momentum']:g}"
    local = (
        f"{spec['train.local-epochs']} epochs, batch {spec['train.batch-size']}, "
        f"lr {spec['train.lr']:g}, momentum {spec['train.momentum']:g}"
    )
    return [
        ("Algorithm", f"{spec['tff.algorithm']}, weights: {spec['tff.weighting']}"),
        ("Aggregator", str(spec["tff.aggregator"])),
        ("Local", local),
        ("Server", optimizer),
    ]


def _pieces(plan: Plan) -> Table:
    from .graphdef import scan

    table = _table("program", "piece", "bytes", "nodes", "takes", "returns")
    for program, made in plan.programs.items():
        for name, piece in made.pieces.items():
            sizes = (len(piece.graph), scan(piece.graph).nodes)
            leaves = (len(piece.inputs), len(piece.outputs))
            table.add_row(program, name, *(f"{n:,}" for n in (*sizes, *leaves)))
    return table


def _sent(plan: Plan, program: str) -> Table:
    from rich.markup import escape

    table = _table(f"sent by a silo ({program})", "role", "type", "shape", "summed")
    for leaf in plan.programs[program].sent:
        summed = f"{leaf.slot}, {leaf.bits} bits" if leaf.bits else leaf.slot
        shape = " x ".join(map(str, leaf.shape)) or "scalar"
        table.add_row(escape(leaf.path), leaf.role, leaf.dtype, shape, summed)
    return table


def _over_flower(plan: Plan) -> list[str]:
    from .analytics import kind_of

    return kind_of(plan).obstacles(plan)


def _needs(plan: Plan) -> str:
    """Return the setting without which a job with the plan is refused, or nothing."""
    from .training import Training

    sealed = "train" in plan.programs and Training(plan).sealed
    return "secure.scheme = secagg" if sealed else ""


def _evaluation(plan: Plan) -> list[str]:
    """Return why silos do not evaluate with the plan."""
    from .evaluation import NOT_ASKED, Evaluation

    return [NOT_ASKED] if _needs(plan) else Evaluation.obstacles(plan)


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        numbers = column in ("bytes", "nodes", "takes", "returns")
        table.add_column(column, justify="right" if numbers else "left")
    return table


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
