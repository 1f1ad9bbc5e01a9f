"""Settings of `mpo train-judge`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rewards.choice import check_choice

MODES = ("lora", "full")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass
class JudgeTraining:
    """Settings of `mpo train-judge`. Relative paths start from the working directory."""

    judge: str = "???"  # folder or hub id to start from
    data: str = "???"  # annotations; layouts in rewards/annotations.py
    out: str = "???"  # folder of the tuned judge
    questions: str | None = None  # one question a line, for VisionRewardDB
    media: str | None = None  # folder that item paths start from; None: where `data` lies
    validation: str | None = None  # annotations to validate on; None: a share of the items is held out
    validation_share: float = 0.1
    allow_missing: float = 0.05  # share of items that may be missing on disk
    template: str | None = None  # prompt with {question}; None: the judge's own
    frames: str = "per_second"  # of clips: per_second | uniform:n
    dtype: str = "float32"  # of the weights in training
    save_dtype: str | None = None  # of the weights in `out`; None: dtype
    device: str = "auto"  # auto | cpu | cuda
    mode: str = "lora"  # lora | full
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_targets: list[str] | None = None  # None: every linear layer but the head
    frozen: list[str] = field(default_factory=list)  # names of modules that stay as they are: [vision_tower]
    balanced: bool = True  # as many yes as no of every question
    questions_per_sequence: int = 64  # at most; an item with more takes several sequences
    epochs: int = 1  # passes over the items, each with its own balanced draw and order
    batch_size: int = 64  # sequences an optimiser step, over all processes
    micro_batch_size: int = 4  # sequences a forward pass and process
    learning_rate: float = 1e-5
    lr_scheduler: str = "constant_with_warmup"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "no"  # no | bf16 | fp16
    gradient_checkpointing: bool = False
    eval_steps: int = 100  # optimiser steps between validations, each with a checkpoint
    keep_gib: float = 0.0  # memory for media as the model takes them, so that later epochs need not read them
    patience: int = 3  # validations without a better balanced accuracy that end training
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # further fields of trl.SFTConfig


def read_training(path: str | Path, overrides: Sequence[str] = ()) -> JudgeTraining:
    """Settings from a YAML file and `key=value` overrides; ValueError with one line for what cannot be."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    layers = [OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))]
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
    check_choice(f"{path}: mode", settings.mode, MODES)
    check_choice(f"{path}: precision", settings.precision, PRECISIONS)
    return settings
