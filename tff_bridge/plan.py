"""The ``.tffplan`` file: a federated computation as graphs that plain TensorFlow runs.

A plan is made once by :mod:`tff_bridge.compiler` and read by server and silos. Reading
needs neither TensorFlow nor TensorFlow Federated: a silo knows what is in a plan before
TensorFlow sees a byte of it.

File
----
A zip archive (deflate) of

``plan.json``
    The manifest: everything below but the bytes of graphs and weights. It has the size
    and SHA-256 of each other file, so **the SHA-256 of plan.json is the plan's hash**,
    whatever the archive around it looks like.
``<program>/<piece>.pb``
    A TensorFlow ``GraphDef``.
``weights.safetensors``
    Initial values of the model's parameters, by torch's names. Graphs have zeros in
    their place, so they are small and depend on shapes only.

Programs
--------
``train``, ``evaluate`` (federated evaluation) or ``analytics`` (a computation of the
user). Each is TensorFlow Federated's *MapReduceForm*: one round is ::

    server    prepared = prepare(state)
    each silo sent     = work(data, prepared)
    server    total    = sum over silos, starting at zero, by accumulate
              state, metrics = update(state, report(total), sums of secure slots)

and the first state is ``init()``. Arguments and results of a piece are flat lists:
nested structures depth first, in the order of :attr:`Piece.inputs` and
:attr:`Piece.outputs`. ``update`` takes the leaves of the state, then those of the
report, then the sums of the slots ``bitwidth``, ``max-input`` and ``modulus``; it
returns the leaves of the state, then the metrics.

Every leaf that ``work`` sends has a *slot* (how it is summed) and a *role* (what it
is); see :class:`Leaf`. Layers read them: noise and clipping are for updates alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truststram.errors import ProtocolError

from . import archive, manifest
from .allowed_ops import ALLOWED_OPS
from .graphdef import scan
from .pieces import Leaf, Piece, Program

__all__ = ["Leaf", "Piece", "Plan", "Program", "read_plan"]

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Plan:
    """A checked plan; make one with :func:`read_plan` or :meth:`of`.

    Attributes
    ----------
    job : dict
        The compiled job (:meth:`tff_bridge.job.CrossSiloJob.spec`).
    built_with : dict
        Versions of what compiled it.
    programs : dict
        :class:`Program` by name.
    parameters : dict
        Shape of each parameter of the model, by torch's name, in the order in which
        update leaves and weight leaves have them; empty for analytics.
    privacy : dict or None
        What the plan's own differential privacy does to a round: ``mechanism``
        (``"gaussian"``), ``noise-multiplier``, ``clip`` and ``clients-per-round``.
        ``work`` clips; ``update`` adds the noise and divides by the last number.
    weights : dict
        Initial values, by the parameter's name.
    content : bytes
        The manifest, ``plan.json``.
    """

    job: dict[str, Any]
    built_with: dict[str, str]
    programs: dict[str, Program]
    parameters: dict[str, tuple[int, ...]]
    privacy: dict[str, Any] | None
    weights: Weights = field(repr=False)
    content: bytes = field(repr=False)

    @classmethod
    def of(
        cls,
        job: Mapping[str, Any],
        built_with: Mapping[str, str],
        programs: Mapping[str, Program],
        weights: Weights,
        privacy: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Return a new plan after the same checks that a reader makes.

        Raises
        ------
        ProtocolError
            As :func:`read_plan`.
        """
        files = _files(programs, weights)
        content = manifest.encode(
            job=dict(job),
            built_with=dict(built_with),
            programs=programs,
            parameters={name: list(array.shape) for name, array in weights.items()},
            privacy=None if privacy is None else dict(privacy),
            files={
                n: [len(b), hashlib.sha256(b).hexdigest()] for n, b in files.items()
            },
        )
        return _checked(content, files)

    @cached_property
    def sha256(self) -> str:
        """The plan's hash, which silos pin: that of the manifest, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def ops(self) -> tuple[str, ...]:
        """All operators, sorted."""
        found: set[str] = set()
        for program in self.programs.values():
            for piece in program.pieces.values():
                found |= scan(piece.graph).ops
        return tuple(sorted(found))

    def to_bytes(self) -> bytes:
        """Return the file; the same plan always gives the same bytes."""
        files = _files(self.programs, self.weights)
        return archive.pack({manifest.NAME: self.content, **files})

    def write(self, path: Path | str) -> None:
        """Write the file."""
        Path(path).write_bytes(self.to_bytes())


def read_plan(source: Path | str | bytes, sha256: str | None = None) -> Plan:
    """Read and check a plan.

    Sizes are bounded before anything is unpacked, every file must match its hash, every
    graph may use allowed operators only (:mod:`tff_bridge.allowed_ops`), and the pieces
    must fit each other.

    Parameters
    ----------
    source : path or bytes
        The file; untrusted.
    sha256 : str, optional
        The hash that the plan must have, in hexadecimal.

    Raises
    ------
    ProtocolError
        ``plan-hash`` for another hash than the one given; ``plan-archive``,
        ``plan-size``, ``plan-manifest``, ``plan-file``, ``plan-pieces``,
        ``plan-weights`` and ``plan-ops``, or as :func:`tff_bridge.graphdef.scan`.
    OSError
        If the file cannot be read.
    """
    if not isinstance(source, bytes):
        source = archive.read_file(Path(source))
    files = archive.unpack(source)
    content = files.pop(manifest.NAME, b"")
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ProtocolError(
            "plan-hash", f"the plan's hash is {found}, not the expected {sha256[:64]}"
        )
    return _checked(content, files)


def _files(programs: Mapping[str, Program], weights: Weights) -> dict[str, bytes]:
    """Return every file but the manifest, by its name in the archive."""
    from safetensors.numpy import save

    files = {
        f"{program}/{name}.pb": piece.graph
        for program, pieces in programs.items()
        for name, piece in pieces.pieces.items()
    }
    if weights:
        files[manifest.WEIGHTS] = save(
            {n: np.ascontiguousarray(w, np.float32) for n, w in weights.items()}
        )
    return files


def _checked(content: bytes, files: Mapping[str, bytes]) -> Plan:
    """Return the plan that a manifest and its files make."""
    parts = manifest.decode(content)
    listed = parts.files
    if set(listed) != set(files):
        raise ProtocolError("plan-file", "the files are not those of the manifest")
    for name, data in files.items():
        if (len(data), hashlib.sha256(data).hexdigest()) != listed[name]:
            raise ProtocolError("plan-file", f"{name} does not match the manifest")
    programs = manifest.with_graphs(parts, files)
    for name, program in programs.items():
        for piece_name, piece in program.pieces.items():
            _check_ops(f"{name}/{piece_name}", piece.graph)
    weights = _weights(files.get(manifest.WEIGHTS, b""), parts.parameters)
    return Plan(
        job=parts.job,
        built_with=parts.built_with,
        programs=programs,
        parameters=parts.parameters,
        privacy=parts.privacy,
        weights=weights,
        content=content,
    )


def _check_ops(name: str, graph: bytes) -> None:
    refused = sorted(scan(graph).ops - ALLOWED_OPS)
    if refused:
        shown = ", ".join(op[:40] for op in refused[:10])
        raise ProtocolError(
            "plan-ops", f"{name}: operators that are not allowed: {shown}"
        )


def _weights(data: bytes, parameters: Mapping[str, tuple[int, ...]]) -> Weights:
    """Return the parameters' values, in the parameters' order."""
    if not parameters and not data:
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ProtocolError("plan-weights", type(error).__name__) from None
    shapes = {name: array.shape for name, array in found.items()}
    if shapes != dict(parameters):
        raise ProtocolError("plan-weights", "they are not those of the parameters")
    for array in found.values():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ProtocolError("plan-weights", "they are not finite float32 numbers")
    return {name: found[name] for name in parameters}
