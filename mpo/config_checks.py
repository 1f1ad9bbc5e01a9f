"""What a run's settings must satisfy beyond their types: bounds and combinations. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

if TYPE_CHECKING:
    from mpo.config import ObjectiveConfig, RunConfig, TrainConfig

MAPO_BETA = 10  # at most: beside more, the winner's own error would count for nothing


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line: the key, its value, what is allowed."""


def renamed(layer: Any) -> Any:
    """An OmegaConf layer with `pairs.from` under the name that a dataclass can have, and with the words for
    which YAML reads false."""
    pairs = layer.get("pairs") if OmegaConf.is_dict(layer) else None
    if OmegaConf.is_dict(pairs) and "from" in pairs:
        pairs["source"] = pairs.pop("from")
    for key, word in (("train.precision", "no"), ("train.displacement.action", "off")):
        if OmegaConf.is_dict(layer) and OmegaConf.select(layer, key) is False:
            OmegaConf.update(layer, key, word)
    return layer


def check(config: RunConfig) -> None:
    """Raise ConfigError for the first setting that cannot be used."""
    _check_bounds(config, "")
    if not Path(config.name).name == config.name or config.name in (".", ".."):
        raise ConfigError(f"name = {config.name!r}: must be a plain folder name, without '/'")
    if config.pairs.source:
        _check_foreign(config)
    for name, entry in config.objectives.dims.items():
        _check_objective(f"objectives.dims.{name}", entry)
    most = config.generate.candidates
    if config.pairs.candidates is not None and config.pairs.candidates > most:
        raise ConfigError(
            f"pairs.candidates = {config.pairs.candidates}: must be at most generate.candidates = {most}"
        )
    if config.train.lora.targets == []:
        raise ConfigError(
            "train.lora.targets = []: must name a module, or be null for the family's attention projections"
        )
    _check_loss(config.train)
    if config.reference == "previous" and config.train.loss == "mapo":
        raise ConfigError("reference = 'previous': train.loss=mapo has no reference; must be base")
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    if batch % micro:
        raise ConfigError(
            f"train.batch_size = {batch}: must be a multiple of train.micro_batch_size = {micro}"
        )


def _check_foreign(config: RunConfig) -> None:
    """Refuse what needs training prompts of one's own, where the pairs come from elsewhere."""
    if config.prompts.train:
        raise ConfigError("prompts.train: not with pairs.from, whose own prompts are trained on")
    if config.rounds > 1:
        raise ConfigError(
            f"rounds = {config.rounds}: not with pairs.from, whose pairs are not sampled; must be 1"
        )
    if config.validate.every and config.prompts.validation is None:
        raise ConfigError("prompts.validation: not set; needed with pairs.from where validate.every is set")


def _check_loss(train: TrainConfig) -> None:
    """Refuse switches that the chosen loss does not have or that undo each other."""
    loss, action = train.loss, train.displacement.action
    if train.beta == "auto" and loss not in ("sigmoid", "poly"):
        why = (
            "has no reference" if loss == "mapo" else "draws the margin to a fixed size, which it would undo"
        )
        raise ConfigError(f"train.beta = 'auto': not with train.loss={loss}, which {why}; set a number")
    if train.beta != "auto":
        train.beta = float(train.beta)
    own = {"label_smoothing": "sigmoid", "poly_alpha": "poly"}
    for name, belongs_to in own.items():
        if (value := getattr(train, name)) and loss != belongs_to:
            raise ConfigError(f"train.{name} = {value}: belongs to train.loss={belongs_to}, not to {loss}")
    if loss == "poly" and not train.poly_alpha:
        raise ConfigError(
            "train.poly_alpha = 0.0: with train.loss=poly it must be set; 0 is train.loss=sigmoid"
        )
    if loss == "mapo":
        switches = ("sft_weight", "dpop_weight", "margin_offset", "safeguard")
        if found := next((name for name in switches if getattr(train, name)), None):
            why = "has that term already" if found == "sft_weight" else "has no reference and no such margin"
            raise ConfigError(
                f"train.{found} = {getattr(train, found)}: not with train.loss=mapo, which {why}"
            )
        if action not in (None, "off"):
            raise ConfigError(
                f"train.displacement.action = {action!r}: train.loss=mapo has no reference to compare with; "
                "must be off"
            )
        if train.beta > MAPO_BETA:
            raise ConfigError(
                f"train.beta = {train.beta:g}: with train.loss=mapo it weighs the margin's term against the "
                f"winner's error; must be at most {MAPO_BETA}, such as train.beta=0.1"
            )
    if train.safeguard and action == "safeguard":
        raise ConfigError(
            "train.displacement.action = 'safeguard': train.safeguard=true has it on from the start"
        )


def _check_objective(name: str, entry: ObjectiveConfig) -> None:
    """Refuse a margin that has no effect or is undone."""
    if entry.role != "improve" and entry.margin > 0:
        raise ConfigError(
            f"{name}.margin = {entry.margin:g}: only for role = improve, and this one's is {entry.role}"
        )
    if entry.margin > 0 and entry.tolerance is not None:
        raise ConfigError(
            f"{name}: margin = {entry.margin:g} asks for a rise and tolerance = {entry.tolerance:g} allows "
            "a fall; set one of them"
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
        elif isinstance(value, str | bool) and rule.get("word"):
            if value != rule["word"]:
                raise ConfigError(f"{name} = {value!r}: must be a number or {rule['word']}")
        elif isinstance(value, float) and math.isinf(value):
            raise ConfigError(f"{name} = {value}: must be finite")
        elif value is not None and rule.get("least") is not None and not value >= rule["least"]:
            raise ConfigError(f"{name} = {value}: must be at least {rule['least']}")
        elif value is not None and rule.get("above") is not None and not value > rule["above"]:
            raise ConfigError(f"{name} = {value}: must be greater than {rule['above']}")
        elif value is not None and rule.get("below") is not None and not value < rule["below"]:
            raise ConfigError(f"{name} = {value}: must be less than {rule['below']}")
