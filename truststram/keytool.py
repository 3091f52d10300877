"""``truststram keys``: identities of nodes, the roster, the key of a job.

Nothing here runs on the server but ``roster`` and ``show``: private halves are made
where they are used and never overwritten.
"""

# As in :mod:`truststram.cli`: what takes time to import is imported where it is used.

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ._options import read_options
from .errors import ConfigError
from .job import Job

__all__ = ["app"]

app = typer.Typer(
    help="Keys of secure sums: who a node is, whom it knows, what encrypts a job.\n\n"
    "1. Every node: truststram keys identity NAME --out keys/ and sends NAME.pub, "
    "which is public, to whoever makes the roster.\n\n"
    "2. Once: truststram keys roster *.pub --out roster.txt, and copies it to every "
    "node's keys/ and to the server (TRUSTSTRAM_ROSTER=/path/of/roster.txt).\n\n"
    "3. For each job, on a node (never on the server): truststram keys init -c "
    "secure.scheme=bfv --out job/, and copies the files to the nodes' keys/ over a "
    "channel that the server cannot read.\n\n"
    "4. Every node starts its SuperNode with --node-config "
    "'secure-keys=\"/path/of/keys\"'.\n\n"
    "Simulations need none of this: their keys are made for the run and gone with it.",
    no_args_is_help=True,
)

Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder; made if missing.")]


@app.command(epilog="Example:\n\ntruststram keys identity hospital-a --out keys/")
def identity(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The node's name.")],
    out: Out = Path("keys"),
    role: Annotated[
        Literal["client", "decryptor"],
        typer.Option(
            help="decryptor: the node that holds a job's key and never trains."
        ),
    ] = "client",
) -> None:
    """Make a node's identity: identity.key (private) and NAME.pub (public)."""
    from .techniques import Identity

    made = Identity.generate(name, role)
    _folder(out)
    public = out / f"{name}.pub"
    _refuse_existing(out / "identity.key", public)
    made.save(out / "identity.key")
    public.write_text(made.member.line() + "\n")
    typer.echo(f"Private: {out / 'identity.key'} (stays on this node)")
    typer.echo(f"Public:  {public}")


@app.command(
    epilog="Examples:\n\ntruststram keys roster *.pub --out roster.txt\n\n"
    "truststram keys roster *.pub --decryptor trustee --out roster.txt"
)
def roster(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Public keys of nodes.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the roster is written.")
    ] = Path("roster.txt"),
    decryptor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="The node that holds the jobs' key; no other may call itself "
            "decryptor.",
        ),
    ] = None,
) -> None:
    """Put the public keys of all nodes into one roster, one node a file.

    Ask each node's operator for the line that is shown here (truststram keys show) by
    telephone, or whoever carried the files decides who is in the federation. What a
    node is allowed to be is said here, not in its file: a decryptor's word on a sum is
    taken alone.
    """
    from .techniques import Roster

    sent = [(file, Roster.load(file)) for file in files]
    for file, keys in sent:  # more would be more votes for one sender
        if len(keys) != 1:
            raise ConfigError(f"{file} has {len(keys)} keys; a node sends its own.")
    made = Roster(member for _, keys in sent for member in keys)
    claimed = {member.name for member in made if member.role == "decryptor"}
    if uninvited := sorted(claimed - set(decryptor or [])):
        raise ConfigError(
            f"{', '.join(uninvited)} is a decryptor by its own file. If it shall be: "
            f"--decryptor {uninvited[0]}"
        )
    if missing := sorted(set(decryptor or []) - claimed):
        raise ConfigError(
            f"--decryptor {missing[0]}: no file has a decryptor of that name. It is "
            "made with truststram keys identity NAME --role decryptor."
        )
    _refuse_existing(out)
    out.write_text("".join(member.line() + "\n" for member in made))
    for member in made:
        typer.echo(member.line())
    typer.echo(f"{out}: {len(made)} nodes")


@app.command(
    epilog="Examples:\n\ntruststram keys init -c secure.scheme=bfv --out job/\n\n"
    "truststram keys init --config job.toml --out job/"
)
def init(
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "-c",
            metavar="KEY=VALUE",
            help="Set one key of the job. See: truststram config --section secure",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Keys of the job.")
    ] = None,
    out: Out = Path("job"),
) -> None:
    """Make the encryption key of a job; a new one for each job."""
    from .techniques import JobKey, parameters_of

    job = Job.of(read_options(config, changes or [], None))
    parameters = parameters_of(job)
    if parameters is None:
        raise ConfigError(
            f"secure.scheme = {job.secure.scheme} has no key of the job: only ckks and "
            "bfv have. Its nodes need identities and the roster."
        )
    made = JobKey.generate(parameters)
    _folder(out)
    _refuse_existing(out / "secret.key", out / "public.key")
    made.save(out)
    holders = "the decryptor only" if parameters.public else "every node, never server"
    typer.echo(f"Fingerprint: {made.fingerprint}")
    typer.echo(f"Secret key:  {out / 'secret.key'} ({holders})")
    if parameters.public:
        typer.echo(f"Public key:  {out / 'public.key'} (every node)")


@app.command(epilog="Example:\n\ntruststram keys show keys/")
def show(
    path: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="Folder of keys, or one file.")
    ],
) -> None:
    """Show names and fingerprints of what is in a folder; nothing secret."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    lines = [line for file in files for line in _about(file)]
    if not lines:
        raise ConfigError(f"{path} has no identity.key, secret.key, public.key, roster")
    for line in lines:
        typer.echo(line)


def _about(file: Path) -> list[str]:
    from .techniques import Identity, JobKey, Roster

    if file.name in ("secret.key", "public.key"):
        key = JobKey.load(file)
        p = key.parameters
        return [
            f"{file.name}: job key {key.fingerprint}, {p.scheme}, up to {p.most} nodes"
        ]
    if file.name == "identity.key":
        return [f"{file.name}: {Identity.load(file).member.line()}"]
    if file.name == "roster.txt" or file.suffix == ".pub":
        return [f"{file.name}: {member.line()}" for member in Roster.load(file)]
    return []


def _folder(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} exists; keys are never overwritten.")
