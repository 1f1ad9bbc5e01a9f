"""An ablation: a base config, axes of overrides, seeds, and the runs that follow. Imports no torch."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mpo.config import ConfigError, RunConfig, load

COMBINE = ("product", "each")


@dataclass(frozen=True)
class Ablation:
    """One file of configs/ablations/.

    An axis is `label: {key: value, ...}` for each arm of it, or `key: [value, ...]` for one setting. The
    first label of every axis makes the base arm, which the others are tested against. `combine`: product, all
    combinations; each, one axis at a time with the others at their first label. `skip` leaves arms out, each
    entry a mapping from axis to label or labels.
    """

    name: str
    base: str
    axes: dict[str, dict[str, dict[str, Any]]]  # axis -> label -> overrides
    combine: str = "product"
    skip: list[dict[str, list[str]]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    overrides: dict[str, Any] = field(default_factory=dict)  # for every run
    folder: str = ""

    def arms(self) -> list[Arm]:
        """The arms, the base arm first."""
        labels = {axis: list(values) for axis, values in self.axes.items()}
        first = {axis: found[0] for axis, found in labels.items()}
        if self.combine == "product":
            every = [
                dict(zip(labels, combined, strict=True)) for combined in itertools.product(*labels.values())
            ]
        else:
            every = [first, *(first | {axis: label} for axis, found in labels.items() for label in found[1:])]
        kept = [arm for arm in every if arm == first or not any(_fits(arm, rule) for rule in self.skip)]
        return [Arm(arm, self._settings(arm)) for arm in kept]

    def _settings(self, labels: Mapping[str, str]) -> dict[str, Any]:
        return {key: value for axis, label in labels.items() for key, value in self.axes[axis][label].items()}


@dataclass(frozen=True)
class Arm:
    labels: dict[str, str]  # axis -> label
    settings: dict[str, Any]  # key -> value

    @property
    def name(self) -> str:
        """Fit for a folder: a-b-c."""
        return "-".join(re.sub(r"[^\w.+]+", "_", label) for label in self.labels.values())


@dataclass(frozen=True)
class Member:
    """One run of the ablation."""

    arm: Arm
    seed: int
    config: RunConfig


def load_ablation(path: Path, words: Sequence[str] = ()) -> Ablation:
    """The ablation of a YAML file. `words` (key=value) that name one of its settings replace that; all others
    are settings of every run. Raises ConfigError or FileNotFoundError in one line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ablation file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    known = [entry.name for entry in fields(Ablation)]
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping with the keys {', '.join(known)}")
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ConfigError(f"override {word!r}: must be key=value, as in seeds=[0,1] or train.steps=100")
        if key in ("seed", "run_dir"):
            raise ConfigError(f"{key}: belongs to each run; an ablation has seeds=[0,1,2] and folder=FOLDER")
        if key in known:
            content[key] = yaml.safe_load(value)
        else:
            content.setdefault("overrides", {})[key] = _value(value)
    for key in content:
        if key not in known:
            nearest = max(known, key=lambda name: difflib.SequenceMatcher(None, str(key), name).ratio())
            raise ConfigError(f"{path}: {key}: no such setting of an ablation; the nearest is {nearest}")
    for key in ("name", "base", "axes"):
        if not content.get(key):
            raise ConfigError(f"{path}: not set: {key}")
    return _checked(path, content)


def members(ablation: Ablation) -> list[Member]:
    """The runs, those of one seed together. Raises ConfigError for a setting that cannot be, with its arm."""
    arms = ablation.arms()
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{ablation.name}: two arms are called {name}; give their labels other names")
    found = []
    for seed, arm in itertools.product(ablation.seeds, arms):
        if varied := sorted(set(ablation.overrides) & set(arm.settings)):
            raise ConfigError(f"{varied[0]}: is set for every run and by an axis too; set it in one place")
        name = f"{arm.name}-seed{seed}"
        place = {"name": name, "seed": seed, "run_dir": str(Path(ablation.folder) / name)}
        settings = ablation.overrides | arm.settings | place
        words = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
        try:
            found.append(Member(arm, seed, load(ablation.base, words)))
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name}: {error}") from None
    return found


def shard(members: Sequence[Member], text: str) -> list[Member]:
    """The members of part i of n, `i/n`: whole seeds together as far as that goes, so machines share little.

    Raises ConfigError for what is no part.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, of = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= part <= of:
        raise ConfigError(f"--shard {text}: must be i/n with i from 1 to n, as 1/4")
    size = len(members)
    return list(members[(part - 1) * size // of : part * size // of])


def _checked(path: Path, content: dict[str, Any]) -> Ablation:
    def refuse(key: str, wanted: str) -> ConfigError:
        return ConfigError(f"{path}: {key} = {content[key]!r}: must be {wanted}")

    if not isinstance(content["name"], str) or Path(content["name"]).name != content["name"]:
        raise refuse("name", "a plain folder name, without '/'")
    content.setdefault("folder", "")
    content["folder"] = str(content["folder"] or Path("runs") / content["name"])
    if content.setdefault("combine", "product") not in COMBINE:
        raise refuse("combine", f"one of {', '.join(COMBINE)}")
    seeds = content.setdefault("seeds", [0, 1, 2])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)):
        raise refuse("seeds", "a list of whole numbers from 0")
    if len(set(seeds)) < len(seeds):
        raise refuse("seeds", "all different")
    if not isinstance(content.setdefault("overrides", {}), dict):
        raise refuse("overrides", "a mapping from setting to value")
    if not isinstance(content["axes"], dict):
        raise refuse("axes", "a mapping from axis to its labels")
    content["axes"] = {str(name): _axis(path, str(name), axis) for name, axis in content["axes"].items()}
    skip = content.setdefault("skip", [])
    if not isinstance(skip, list) or not all(isinstance(rule, dict) and rule for rule in skip):
        raise refuse("skip", "a list of mappings from axis to label or labels")
    content["skip"] = [_rule(path, rule, content["axes"]) for rule in skip]
    return Ablation(**content)


def _axis(path: Path, name: str, axis: Any) -> dict[str, dict[str, Any]]:
    where = f"{path}: axes.{name}"
    if not isinstance(axis, dict) or not axis:
        raise ConfigError(f"{where}: must be a mapping: label: {{key: value}}, or key: [value, value]")
    if len(axis) == 1 and isinstance(values := next(iter(axis.values())), list):
        key = str(next(iter(axis)))
        axis = {json.dumps(value) if not isinstance(value, str) else value: {key: value} for value in values}
    for label, settings in axis.items():
        if not isinstance(settings, dict):
            raise ConfigError(f"{where}.{label} = {settings!r}: must be a mapping from setting to value")
    return {str(label): dict(settings) for label, settings in axis.items()}


def _rule(path: Path, rule: dict[str, Any], axes: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    found = {}
    for axis, labels in rule.items():
        listed = [str(label) for label in (labels if isinstance(labels, list) else [labels])]
        unknown = [label for label in listed if label not in axes.get(axis, {})]
        if unknown:
            raise ConfigError(f"{path}: skip: axis {axis} has no label {unknown[0]}")
        found[axis] = listed
    return found


def _fits(labels: Mapping[str, str], rule: Mapping[str, Sequence[str]]) -> bool:
    return all(labels[axis] in allowed for axis, allowed in rule.items())


def _value(text: str) -> Any:
    """A value as `mpo run key=value` reads it."""
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
