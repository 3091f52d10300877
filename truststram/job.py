"""The whole configuration of a run: one frozen, validated :class:`Job`.

A job equals the flat kebab-case run config that Flower gives to server and clients,
in both directions: ``job.train.local_epochs`` is the key ``train.local-epochs``. Each
key is declared once, in :mod:`truststram.sections` and
:mod:`truststram.private_sections`, with its default, range and one
line of help; the command line, ``pyproject.toml`` and the error messages all read this
declaration.

This module checks values one at a time. Which settings may be combined is decided by
``strategies/stack.py``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from .errors import ConfigError
from .keys import Rule, Value
from .private_sections import CompressionKeys, PrivacyKeys, SecureKeys, TffKeys
from .sections import (
    AdversaryKeys,
    AnomalyKeys,
    DataKeys,
    RobustKeys,
    RoundKeys,
    RunKeys,
    ServerKeys,
    TaskKeys,
    TrainKeys,
)

__all__ = ["Job", "Key", "Value", "keys", "shown"]


@dataclass(frozen=True)
class Key:
    """One key of the run config, for listings."""

    name: str
    default: Value
    help: str
    expected: str
    planned: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A validated configuration; immutable, comparable, hashable.

    Build one from keys (``Job.of({"train.rounds": 5})``) or sections
    (``Job(train=TrainKeys(rounds=5))``).

    Raises
    ------
    ConfigError
        One line for every key that is unknown, has the wrong type, is out of range or
        asks for something that this version does not have.

    Examples
    --------
    >>> Job.of({"train.rounds": 5}).train.rounds
    5
    >>> Job.of(Job().config()) == Job()
    True
    """

    task: TaskKeys = field(default_factory=TaskKeys)
    data: DataKeys = field(default_factory=DataKeys)
    train: TrainKeys = field(default_factory=TrainKeys)
    server: ServerKeys = field(default_factory=ServerKeys)
    round: RoundKeys = field(default_factory=RoundKeys)
    robust: RobustKeys = field(default_factory=RobustKeys)
    anomaly: AnomalyKeys = field(default_factory=AnomalyKeys)
    privacy: PrivacyKeys = field(default_factory=PrivacyKeys)
    compression: CompressionKeys = field(default_factory=CompressionKeys)
    secure: SecureKeys = field(default_factory=SecureKeys)
    tff: TffKeys = field(default_factory=TffKeys)
    adversary: AdversaryKeys = field(default_factory=AdversaryKeys)
    run: RunKeys = field(default_factory=RunKeys)

    def __post_init__(self) -> None:
        sections = ((name, getattr(self, name)) for name, _ in _sections())
        problems = [line for name, s in sections for line in _problems(name, s)]
        if problems:
            raise ConfigError("\n".join(problems))

    @classmethod
    def of(cls, config: Mapping[str, Value]) -> Job:
        """Build a job from flat kebab-case keys; keys left out have their defaults."""
        fields = dict(_fields())
        problems = [_unknown(name, fields) for name in config if name not in fields]
        given: dict[str, dict[str, Value]] = {}
        for name in (n for n in config if n in fields):
            section, attribute, spec = fields[name]
            try:
                value = _typed(name, config[name], spec.default)
                given.setdefault(section, {})[attribute] = value
            except ConfigError as error:
                problems.append(str(error))
        types = dict(_sections())
        sections = {s: types[s](**values) for s, values in given.items()}
        try:
            job = cls(**sections)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))
        return job

    def config(self) -> dict[str, Value]:
        """Return all keys, flat and kebab-case, as Flower's run config has them."""
        return {
            name: getattr(getattr(self, section), attribute)
            for name, (section, attribute, _) in _fields()
        }

    def replace(self, changes: Mapping[str, Value]) -> Job:
        """Return a copy with some flat keys changed."""
        return Job.of({**self.config(), **changes})


def keys() -> list[Key]:
    """Return every key with default, help and accepted values, in order."""
    return [
        Key(
            name,
            default,
            spec.metadata["help"],
            spec.metadata["rule"].expected(),
            spec.metadata["rule"].planned,
        )
        for name, (_, _, spec) in _fields()
        for default in [_default(spec)]
    ]


def _sections() -> Iterator[tuple[str, type[Any]]]:
    """Yield (name, class) of every section."""
    for section in dataclasses.fields(Job):
        yield section.name, cast(type[Any], section.default_factory)


def _flat(section: str, attribute: str) -> str:
    return f"{section}.{attribute.replace('_', '-')}"


def _fields() -> Iterator[tuple[str, tuple[str, str, dataclasses.Field[Any]]]]:
    """Yield (flat name, (section, attribute, field)) of every key."""
    for section, kind in _sections():
        for spec in dataclasses.fields(kind):
            yield _flat(section, spec.name), (section, spec.name, spec)


def _default(spec: dataclasses.Field[Any]) -> Value:
    return cast(Value, spec.default)


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else " See: truststram config"
    return f"Unknown key {name}.{hint}"


def _typed(name: str, value: Any, default: Any) -> Any:
    """Return ``value`` with the type of ``default``; an int may stand for a float."""
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        kind = type(default).__name__
        found = f"{value!r} ({type(value).__name__})"
        raise ConfigError(f"{name} = {found}: expected a value of type {kind}.")
    return value


def _problems(section: str, values: Any) -> Iterator[str]:
    """Yield one line for each wrong value of a section."""
    specs = dataclasses.fields(values)
    for spec in specs:
        name, value = _flat(section, spec.name), getattr(values, spec.name)
        rule: Rule = spec.metadata["rule"]
        try:
            _typed(name, value, spec.default)
        except ConfigError as error:
            yield str(error)
            continue
        if _is_planned(rule, value, spec.default):
            yield f"{name} = {shown(value)}: not available in this version."
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{name} = {value}: expected a finite number, {rule.expected()}."
        elif not rule.accepts(value):
            yield f"{name} = {shown(value)}: expected {rule.expected()}."
    switch = getattr(values, "switch", None)
    if switch is None or getattr(values, switch[0]) != switch[1]:
        return
    # A setting that nothing reads is a mistake: most likely a forgotten switch.
    for spec in specs:
        if spec.name != switch[0] and getattr(values, spec.name) != spec.default:
            off = f"{_flat(section, switch[0])} is {shown(switch[1])}"
            yield (
                f"{_flat(section, spec.name)} = {shown(getattr(values, spec.name))}: "
                f"has no effect while {off}. Set {_flat(section, switch[0])} too."
            )


def _is_planned(rule: Rule, value: Value, default: Any) -> bool:
    if value == default or not rule.planned:
        return False
    return rule.planned == ("*",) or shown(value) in rule.planned


def shown(value: Value) -> str:
    """Return a value as it is written in a config."""
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'
