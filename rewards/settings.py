"""A reward's settings, and reading them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rewards.choice import check_choice, check_number

KINDS = ("transformers", "cogvlm2")


@dataclass
class RewardSettings:
    """The keys of `configs/rewards/*.yaml`. Relative paths start from the working directory.

    judge: folder or hub id.
    checklist: a YAML file, a folder of the release's files, or, once fetched, `visionreward-video` or
    `visionreward-image`. policy and questions say how the release's files are read; see `rewards.release`.
    kind: transformers | cogvlm2; None: told from the judge's config.json.
    template: prompt with `{question}`; None: the judge's own.
    dtype: float32 | bfloat16 | float16. device: auto | cpu | cuda.
    batch_size: media encoded at once, at most, None: 4 clips or 16 images; halved while memory does not
    suffice.
    frames: frames of a clip, `per_second` (the release's rule), `uniform:n` or `first:n`.
    features: feature id -> kind (vqascore | clip | judge) and the keywords of its `load`, such as `path`.
    min_mass: least probability of yes and no together.
    cache: folder of the score cache; None: nothing is kept.
    """

    judge: str = MISSING
    checklist: str | None = None
    kind: str | None = None
    template: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    batch_size: int | None = None
    frames: str = "per_second"
    policy: str = "release"
    questions: str = "select"
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    min_mass: float = 0.5
    cache: str | None = None


def read_settings(config: str | Path | Mapping | Any) -> RewardSettings:
    """Settings from a YAML file, a mapping or a dataclass; ValueError naming the key that is wrong."""
    where = "reward"
    if isinstance(config, (str, Path)):
        where, config = str(config), read_yaml(config)
    if is_dataclass(config):
        config = asdict(config)
    for key in config:
        check_choice(f"{where}: key", key, [field.name for field in fields(RewardSettings)])
    if not config.get("judge"):
        raise ValueError(f"{where}: `judge` is missing: a folder or hub id")
    try:
        layers = OmegaConf.structured(RewardSettings), OmegaConf.create(dict(config))
        settings = OmegaConf.to_object(OmegaConf.merge(*layers))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{where}: {error.full_key or 'settings'}: {reason}") from None
    if settings.batch_size is not None:
        check_number(f"{where}: batch_size", settings.batch_size, least=1)
    check_number(f"{where}: min_mass", settings.min_mass, least=0, below=1)
    return settings


def read_yaml(path: str | Path) -> Mapping[str, Any]:
    """The mapping in a reward's YAML file."""
    if not Path(path).is_file():
        raise ValueError(
            f"{path}: {'a folder' if Path(path).is_dir() else 'no such file'}; needed a YAML file"
        )
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: a reward is a mapping with `judge` and `checklist`")
    return content
