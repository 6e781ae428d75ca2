"""Settings of a training run from a YAML file."""

from __future__ import annotations

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
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"'{path}' cannot be read as a training configuration: {error}") from error
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
