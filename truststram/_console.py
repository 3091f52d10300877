"""What the commands share: printing tables, and finding the folder of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import ConfigError

__all__ = ["print_json", "print_rich", "run_folder"]

# Columns where nobody looks: tables are not cut to 80.
WIDE = 140


def print_rich(what: Any) -> None:
    """Print tables and text to standard output."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    console.print(what)


def print_json(content: Any) -> None:
    """Print JSON to standard output, for other programs."""
    # Not by rich, which breaks lines.
    import typer

    typer.echo(json.dumps(content, indent=2, allow_nan=False))


def run_folder(run: str, dir: Path) -> Path:
    """Return the folder of a run that is given by its id or its folder.

    Raises
    ------
    ConfigError
        If there is no such run.
    """
    for folder in (Path(run), dir / run):
        if (folder / "events.jsonl").is_file():
            return folder.resolve()
    raise ConfigError(f"There is no run {run}, neither here nor in {dir}.")
