"""Settings of a training run: from a YAML file, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from wvl_ros.errors import ConfigError

T = TypeVar("T")


def read_settings(kind: type[T], path: Path, **tables: type[Any]) -> T:
    """The dataclass `kind` from a YAML mapping; the keys named in `tables` are mappings of dataclasses of their own.

    Raises:
        ConfigError: no such file, not YAML, or an unknown or impossible setting.
    """
    values = read_yaml(path)
    if not isinstance(values, dict) or not all(isinstance(values.get(name, {}), dict) for name in tables):
        inside = "".join(f", with '{name}' a mapping as well" for name in tables)
        raise ConfigError(f"'{path}' should be a mapping of settings{inside}.")
    parts = {name: values.pop(name, {}) for name in tables}
    for given, known in ((values, kind), *((parts[name], table) for name, table in tables.items())):
        unknown = given.keys() - {f.name for f in fields(known)}
        if unknown:
            raise ConfigError(f"'{path}' has the unknown setting '{min(unknown)}'.")
    try:
        return kind(**values, **{name: table(**parts[name]) for name, table in tables.items()})
    except TypeError as error:
        raise ConfigError(f"'{path}' has a setting of the wrong type: {error}.") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, {} where it is empty.

    Raises:
        ConfigError: no such file, or not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"'{path}' cannot be read as a training configuration: {error}") from error


def require(settings: object, names: Iterable[str], holds: Callable[[Any], bool], rule: str, of: str) -> None:
    """Checks fields of settings, for instance `require(self, ("batch",), lambda n: n >= 1, "at least 1", "GRPO's")`.

    Raises:
        ConfigError: one does not hold; says which, of what, and what it must be.
    """
    for name in names:
        value = getattr(settings, name)
        if not holds(value):
            raise ConfigError(f"{of} {name} must be {rule}, but is {value}.")
