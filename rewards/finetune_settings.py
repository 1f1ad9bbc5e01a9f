"""Settings of `mpo train-judge`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rewards.choice import check_choice, check_number

DTYPES = ("float32", "bfloat16", "float16")
CHOICES = {
    "dtype": DTYPES,
    "save_dtype": (None, *DTYPES),
    "device": ("auto", "cpu", "cuda"),
    "mode": ("lora", "full"),
    "precision": ("no", "bf16", "fp16"),
}


def number(
    default: float, least: float | None = None, above: float | None = None, below: float | None = None
) -> Any:
    """A number field with bounds: `least` is allowed itself, `above` and `below` are not."""
    return field(default=default, metadata={"least": least, "above": above, "below": below})


@dataclass
class JudgeTraining:
    """Settings of `mpo train-judge`. Relative paths start from the working directory."""

    judge: str = "???"  # folder or hub id to start from
    data: str = "???"  # annotations; layouts in rewards/annotations.py
    out: str = "???"  # folder of the tuned judge
    questions: str | None = None  # one question a line, for VisionRewardDB
    media: str | None = None  # folder that item paths start from; None: where `data` lies
    validation: str | None = None  # annotations to validate on; None: a share of the items is held out
    validation_share: float = number(0.1, above=0, below=1)
    allow_missing: float = number(0.05, least=0)  # share of items that may be missing on disk
    template: str | None = None  # prompt with {question}; None: the judge's own
    frames: str = "per_second"  # of clips: per_second | uniform:n | first:n
    dtype: str = "float32"  # of the weights in training
    save_dtype: str | None = None  # of the weights in `out`; None: dtype
    device: str = "auto"  # auto | cpu | cuda
    mode: str = "lora"  # lora | full
    lora_rank: int = number(16, least=1)
    lora_alpha: int = number(32, least=1)
    lora_dropout: float = number(0.0, least=0, below=1)
    lora_targets: list[str] | None = None  # None: every linear layer but the head
    frozen: list[str] = field(default_factory=list)  # names of modules that stay as they are: [vision_tower]
    balanced: bool = True  # as many yes as no of every question
    questions_per_sequence: int = number(64, least=1)  # at most; an item with more takes several sequences
    epochs: int = number(1, least=1)  # passes over the items, each with its own balanced draw and order
    batch_size: int = number(64, least=1)  # sequences an optimiser step, over all processes
    micro_batch_size: int = number(4, least=1)  # sequences a forward pass and process
    learning_rate: float = number(1e-5, above=0)
    lr_scheduler: str = "constant_with_warmup"
    warmup_steps: int = number(0, least=0)
    weight_decay: float = number(0.0, least=0)
    max_grad_norm: float = number(1.0, least=0)
    precision: str = "no"  # no | bf16 | fp16
    gradient_checkpointing: bool = False
    eval_steps: int = number(100, least=1)  # optimiser steps between validations, each with a checkpoint
    keep_gib: float = number(0.0, least=0)  # memory for media as the model takes them, for later epochs
    patience: int = number(3, least=1)  # validations without a better balanced accuracy that end training
    seed: int = number(0, least=0)
    options: dict[str, Any] = field(default_factory=dict)  # further fields of trl.SFTConfig


def read_training(path: str | Path, overrides: Sequence[str] = ()) -> JudgeTraining:
    """Settings from a YAML file and `key=value` overrides; ValueError with one line for what cannot be."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    for override in overrides:
        if not override.partition("=")[1]:
            raise ValueError(f"{path}: override {override!r}: must be key=value, as in epochs=2")
    layers = [_read(path), OmegaConf.from_dotlist(list(overrides))]
    for layer in layers:
        for key in layer:
            check_choice(f"{path}: setting", key, [entry.name for entry in fields(JudgeTraining)])
    try:
        merged = OmegaConf.merge(OmegaConf.structured(JudgeTraining), *layers)
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ValueError(f"{path}: not set: {', '.join(missing)}")
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {error.full_key}: {str(error.msg).splitlines()[0]}") from None
    check(settings, f"{path}: ")
    return settings


def check(settings: JudgeTraining, where: str = "") -> None:
    """ValueError with one line for the first setting that is not among its choices or out of its bounds."""
    for name, allowed in CHOICES.items():
        value = getattr(settings, name)
        if value not in allowed:
            check_choice(f"{where}{name}", value, [choice for choice in allowed if choice])
    for entry in fields(settings):
        if entry.metadata:
            check_number(f"{where}{entry.name}", getattr(settings, entry.name), **entry.metadata)
    if settings.batch_size % settings.micro_batch_size:
        raise ValueError(
            f"{where}batch_size = {settings.batch_size}: must be a multiple of "
            f"micro_batch_size = {settings.micro_batch_size}"
        )


def _read(path: str | Path) -> DictConfig:
    try:
        layer = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(layer, DictConfig):
        raise ValueError(f"{path}: the settings of a training are a mapping: judge, data, out and others")
    return layer
