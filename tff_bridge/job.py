"""A cross-silo job: a model, an algorithm of TensorFlow Federated, an aggregator.

Written as ``job.toml``::

    [task]
    name = "breast-cancer"          # a name of truststram.tasks

    [train]                         # as in every run: truststram config
    local-epochs = 2
    batch-size = 16
    lr = 0.1

    [tff]
    algorithm = "fed-prox"
    proximal = 0.01

Tables other than ``[tff]`` are those of the ordinary job; only keys that change the
compiled computation are accepted. What belongs to a run (rounds, nodes, layers) is
given to ``truststram run``.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from truststram.errors import ConfigError
from truststram.job import Job
from truststram.keys import Rule, Value

from .checked_json import canonical_json
from .plan_keys import PlanKeys

__all__ = ["CrossSiloJob", "PlanKeys", "read_job"]

MAX_JOB = 1 << 20
_RUN_KEYS = (
    *("task.name", "data.path", "data.label", "data.id-column", "data.classes"),
    *("train.local-epochs", "train.batch-size", "train.lr", "train.momentum"),
    *("server.optimizer", "server.lr", "server.momentum", "run.seed"),
)
# Of the model's owner's machine, not of the computation.
_NOT_COMPILED = ("data.path",)
_SERVER_LR = {"sgd": 1.0}
_OTHER_SERVER_LR = 0.03


@dataclass(frozen=True)
class CrossSiloJob:
    """A validated cross-silo job.

    Attributes
    ----------
    base : Job
        The ordinary job with the keys that were given.
    tff : PlanKeys
        The table ``[tff]``.
    given : frozenset of str
        The keys that were written down.

    Raises
    ------
    ConfigError
        A line for each setting that is out of range or does not go with the others.
    """

    base: Job = field(default_factory=Job)
    tff: PlanKeys = field(default_factory=PlanKeys)
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        problems = list(_range_problems(self.tff)) or list(_combinations(self))
        if problems:
            raise ConfigError("\n".join(problems))

    @classmethod
    def of(cls, config: Mapping[str, Value]) -> CrossSiloJob:
        """Build a job from flat keys such as ``train.lr`` and ``tff.algorithm``."""
        names = {_name(spec): spec for spec in dataclasses.fields(PlanKeys)}
        problems, own, base = [], {}, {}
        for name, value in config.items():
            if name in names:
                spec = names[name]
                if isinstance(spec.default, float) and type(value) is int:
                    value = float(value)
                if type(value) is not type(spec.default):
                    kind = type(spec.default).__name__
                    problems.append(
                        f"{name} = {value!r}: expected a value of type {kind}."
                    )
                own[spec.name] = value
            elif name in _RUN_KEYS:
                base[name] = value
            else:
                problems.append(_unknown(name, [*names, *_RUN_KEYS]))
        try:
            made = Job.of(base)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(made, PlanKeys(**cast(Any, own)), frozenset(config))

    @property
    def weighting(self) -> str:
        """``"examples"`` or ``"uniform"``."""
        if self.tff.weighting != "auto":
            return self.tff.weighting
        return "uniform" if self.tff.aggregator == "dp" else "examples"

    @property
    def privacy(self) -> dict[str, Any] | None:
        """What the plan's own differential privacy does to a round."""
        if self.tff.aggregator != "dp":
            return None
        return {
            "mechanism": "gaussian",
            "noise-multiplier": self.tff.noise_multiplier,
            "clip": self.tff.clip,
            "clients-per-round": self.tff.clients_per_round,
        }

    def spec(self) -> dict[str, Value]:
        """Return every key that the computation depends on, resolved."""
        config = self.base.config()
        spec: dict[str, Value] = {
            name: config[name] for name in _RUN_KEYS if name not in _NOT_COMPILED
        }
        optimizer = self.base.server.optimizer
        usual = _SERVER_LR.get(optimizer, _OTHER_SERVER_LR)
        spec["server.lr"] = self.base.server.lr or usual
        if self.tff.algorithm == "fed-sgd":
            spec["train.local-epochs"] = 1
        for key in dataclasses.fields(PlanKeys):
            spec[_name(key)] = getattr(self.tff, key.name)
        spec["tff.weighting"] = self.weighting
        spec["tff.computation"] = Path(self.tff.computation).name
        return spec

    @property
    def sha256(self) -> str:
        """The hash of :meth:`spec`, in hexadecimal."""
        return hashlib.sha256(canonical_json(self.spec())).hexdigest()


def read_job(path: Path | str) -> CrossSiloJob:
    """Read ``job.toml``; ``tff.computation`` and ``data.path`` are relative to it.

    Raises
    ------
    ConfigError
        If the file is not TOML of this form, or as :class:`CrossSiloJob`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JOB + 1).decode()
        if len(text) > MAX_JOB:
            raise ConfigError(f"{path}: larger than {MAX_JOB} bytes.")
        tables = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}.") from error
    config: dict[str, Value] = {}
    for table, values in tables.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {table} stands outside a table such as [tff].")
        config |= {f"{table}.{name}": value for name, value in values.items()}
    for name in ("tff.computation", "data.path"):
        if isinstance(value := config.get(name), str) and value:
            config[name] = str(path.resolve().parent / value)
    return CrossSiloJob.of(config)


def _name(spec: dataclasses.Field[Any]) -> str:
    return f"tff.{spec.name.replace('_', '-')}"


def _unknown(name: str, known: list[str]) -> str:
    if name in Job().config():
        return (
            f"{name}: belongs to the run, not to the plan: truststram run -c {name}=..."
        )
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Keys: {', '.join(known)}."
    return f"Unknown key {name}. {hint}"


def _range_problems(tff: PlanKeys) -> Iterator[str]:
    for spec in dataclasses.fields(tff):
        value, rule = getattr(tff, spec.name), cast(Rule, spec.metadata["rule"])
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{_name(spec)} = {value}: expected a finite number."
        elif not rule.accepts(value):
            yield f"{_name(spec)} = {value}: expected {rule.expected()}."


def _combinations(job: CrossSiloJob) -> Iterator[str]:
    """Yield a line for each setting that has no effect or no meaning with others."""
    tff, given = job.tff, job.given
    if tff.computation:
        rest = sorted(n for n in given if n.startswith(("tff.", "server.")))
        rest.remove("tff.computation")
        if rest:
            yield f"{', '.join(rest)}: no effect on a computation of your own."
        return
    is_sgd, is_dp = tff.algorithm == "fed-sgd", tff.aggregator == "dp"
    limited = tff.aggregator in ("robust", "compression", "secure")
    for name, used, where in (
        ("tff.proximal", tff.algorithm == "fed-prox", "algorithm fed-prox"),
        ("tff.noise-multiplier", is_dp, "aggregator dp"),
        ("tff.clip", is_dp, "aggregator dp"),
        ("tff.clients-per-round", is_dp, "aggregator dp"),
        ("tff.zeroing", limited, "aggregators robust, compression and secure"),
        ("tff.clipping", limited, "aggregators robust, compression and secure"),
        ("tff.input-dtype", bool(tff.input_shape), "tff.input-shape"),
        ("train.lr", not is_sgd, "algorithms with local steps; set server.lr"),
        ("train.momentum", not is_sgd, "algorithms with local steps"),
        ("server.momentum", job.base.server.optimizer == "sgd", "server.optimizer sgd"),
    ):
        if name in given and not used:
            yield f"{name}: has an effect with {where} only."
    if is_sgd and job.base.train.local_epochs != 1 and "train.local-epochs" in given:
        yield "train.local-epochs: fed-sgd takes one gradient; remove the key."
    if is_sgd and job.weighting == "uniform":
        yield "tff.weighting = uniform: TFF weights fed-sgd by examples; use fed-avg."
    if tff.algorithm == "fed-prox" and tff.proximal == 0:
        yield "tff.proximal: fed-prox needs a strength > 0, such as 0.01."
    if tff.algorithm == "mime-lite" and tff.aggregator != "mean":
        yield (
            f"tff.aggregator = {tff.aggregator}: mime-lite sends full gradients beside "
            "the update, which this aggregator would not protect; use fed-avg or mean."
        )
    if is_dp:
        yield from _dp_combinations(job)
    try:
        shape_of(tff.input_shape)
    except ValueError:
        yield f"tff.input-shape = {tff.input_shape}: expected sizes such as 1x28x28."


def _dp_combinations(job: CrossSiloJob) -> Iterator[str]:
    if job.tff.algorithm != "fed-avg":
        yield f"tff.algorithm = {job.tff.algorithm}: aggregator dp needs fed-avg."
    if job.weighting != "uniform":
        yield "tff.weighting = examples: with dp, weights are data; use uniform."
    if job.tff.clients_per_round < 1:
        yield "tff.clients-per-round: dp needs the expected number of silos, >= 1."


def shape_of(text: str) -> tuple[int, ...]:
    """Return ``(1, 28, 28)`` for ``"1x28x28"``.

    Raises
    ------
    ValueError
        For anything but positive integers.
    """
    sizes = tuple(int(part) for part in text.split("x")) if text else ()
    if any(size < 1 for size in sizes) or math.prod(sizes) > 1 << 24:
        raise ValueError(text)
    return sizes
