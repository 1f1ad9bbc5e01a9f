"""What a run's settings must satisfy beyond their types: bounds and combinations. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpo.config import RunConfig


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line: the key, its value, what is allowed."""


def check(config: RunConfig) -> None:
    """Raise ConfigError for the first setting that cannot be used."""
    _check_bounds(config, "")
    if not Path(config.name).name == config.name or config.name in (".", ".."):
        raise ConfigError(f"name = {config.name!r}: must be a plain folder name, without '/'")
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    if batch % micro:
        raise ConfigError(
            f"train.batch_size = {batch}: must be a multiple of train.micro_batch_size = {micro}"
        )


def _check_bounds(node: Any, prefix: str) -> None:
    for entry in fields(node):
        value, name, rule = getattr(node, entry.name), prefix + entry.name, entry.metadata
        if is_dataclass(value):
            _check_bounds(value, f"{name}.")
        elif isinstance(value, dict):
            for key, inner in value.items():
                if is_dataclass(inner):
                    _check_bounds(inner, f"{name}.{key}.")
        elif "one_of" in rule and value not in rule["one_of"]:
            allowed = ", ".join("null" if choice is None else choice for choice in rule["one_of"])
            raise ConfigError(f"{name} = {value!r}: must be one of {allowed}")
        elif value is not None and rule.get("least") is not None and not value >= rule["least"]:
            raise ConfigError(f"{name} = {value}: must be at least {rule['least']}")
        elif value is not None and rule.get("above") is not None and not value > rule["above"]:
            raise ConfigError(f"{name} = {value}: must be greater than {rule['above']}")
