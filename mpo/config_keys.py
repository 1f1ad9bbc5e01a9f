"""Keys and types of a config against the dataclasses that it fills, and the line that says what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from mpo.config_checks import ConfigError


def check_keys(node: Any, root: type) -> None:
    """Refuse keys that the dataclass `root` and its sections lack, and anything but a mapping for a section.

    ConfigError names the nearest setting that there is.
    """
    _check(node, root, "", root)


def _check(node: Any, kind: type, prefix: str, root: type) -> None:
    if not isinstance(node, dict):
        where = f"{prefix} = {node!r}" if prefix else "the file"
        raise ConfigError(f"{where}: must be a mapping with the keys {', '.join(get_type_hints(kind))}")
    hints = get_type_hints(kind)
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if key not in hints:
            raise ConfigError(
                f"{name}: no such setting; the nearest is {_nearest(str(key), prefix, hints, root)}"
            )
        inner = hints[key]
        if is_dataclass(inner):
            _check(value, inner, name, root)
        elif get_origin(inner) is dict and not isinstance(value, dict):
            raise ConfigError(f"{name} = {value!r}: must be a mapping")
        elif get_origin(inner) is dict and is_dataclass(get_args(inner)[1]):
            for entry, settings in value.items():
                _check(settings, get_args(inner)[1], f"{name}.{entry}", root)


def _nearest(key: str, prefix: str, siblings: Iterable[str], root: type) -> str:
    """The setting most like `key`: one beside it if any is close, else the best of the whole config."""
    beside = difflib.get_close_matches(key, list(siblings), n=1)
    if beside:
        return f"{prefix}.{beside[0]}" if prefix else beside[0]
    leaves = {name: name.rpartition(".")[2] for name in _all_keys(root, "")}
    return max(leaves, key=lambda name: difflib.SequenceMatcher(None, key, leaves[name]).ratio())


def _all_keys(kind: type, prefix: str) -> Iterator[str]:
    for key, hint in get_type_hints(kind).items():
        yield prefix + key
        if is_dataclass(hint):
            yield from _all_keys(hint, f"{prefix}{key}.")


def explain(error: OmegaConfBaseException, layers: Sequence[Any], root: type) -> str:
    """One line for what OmegaConf refused to merge of `layers`: the key, the value given, the type wanted."""
    key = error.full_key or ""
    reason = (error.msg or str(error)).splitlines()[0]
    hint: Any = root
    for part in key.split("."):
        hints = get_type_hints(hint) if is_dataclass(hint) else {}
        hint = hints[part] if part in hints else get_args(hint)[-1] if get_origin(hint) is dict else None
    if hint is None or not isinstance(error, ValidationError):
        return f"{key}: {reason}".lstrip(": ")
    value = None
    for layer in layers:  # the last layer that sets the key has the word
        node = OmegaConf.to_container(layer)
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        value = node if node is not None else value
    return f"{key} = {value!r}: must be {_type_name(hint)}"


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if isinstance(hint, UnionType):
        parts = [part for part in get_args(hint) if part is not int or float not in get_args(hint)]
        return " or ".join(_type_name(part) for part in parts)
    if get_origin(hint) is list:
        return f"a list, each {_type_name(get_args(hint)[0])}"
    return names.get(hint, "a mapping")
