"""DiffusionDPOConfig: TrainingArguments with the loss's settings, and how a run's settings become one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

from mpo.config import DISPLACEMENT, LOSSES, TrainConfig
from mpo.sharding import wants_fsdp


@dataclass
class DiffusionDPOConfig(TrainingArguments):
    """`transformers.TrainingArguments` with the loss's settings; `max_steps` says how long to train."""

    loss: str = field(default="sigmoid", metadata={"help": f"One of {', '.join(LOSSES)}."})
    beta: float | str = field(
        default=2000.0, metadata={"help": "Strength of the reference, mean-reduced errors; or 'auto'."}
    )
    beta_target: float = field(default=0.2, metadata={"help": "Gradient factor that beta='auto' aims at."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of labels that are wrong; sigmoid."})
    poly_alpha: float = field(default=0.0, metadata={"help": "Weight of 1 - p; poly."})
    sft_weight: float = field(default=0.0, metadata={"help": "Weight of the winner's own error in the loss."})
    dpop_weight: float = field(default=0.0, metadata={"help": "Weight of the winner's excess in the margin."})
    margin_offset: float = field(
        default=0.0, metadata={"help": "Margin that a pair of typical gap must exceed."}
    )
    safeguard: bool = field(
        default=False, metadata={"help": "Scale the loser's gradient, see mpo/losses.py."}
    )
    safeguard_mu: float = field(default=0.9, metadata={"help": "mu of the safeguard."})
    displacement: str = field(
        default="warn", metadata={"help": f"What to do about it: off, {', '.join(DISPLACEMENT)}."}
    )
    displacement_patience: int = field(
        default=50, metadata={"help": "Steps above the threshold before that."}
    )
    displacement_threshold: float = field(
        default=0.001, metadata={"help": "As a share of the reference's error."}
    )
    displacement_decay: float = field(default=0.98, metadata={"help": "Of the running mean, a step."})
    displacement_factor: float = field(
        default=0.5, metadata={"help": "Of the learning rate, for lower_rate."}
    )
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False  # a loss that is not finite stops the run instead
    ddp_find_unused_parameters: bool | None = False
    report_to: str | list[str] | None = "none"


_LOSS = (
    "loss", "beta", "beta_target", "label_smoothing", "poly_alpha", "sft_weight", "dpop_weight",
    "margin_offset", "safeguard", "safeguard_mu",
)  # fmt: skip
_WATCH = ("patience", "threshold", "decay", "factor")
_BITSANDBYTES = {
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
# Options of the Trainer that would make it do what the run does itself, or that its launcher does.
_FOREIGN = ("eval_", "do_", "fsdp", "deepspeed", "load_best_model_at_end")
_INSTEAD = "a run evaluates by itself, and configs/accelerate/ says how it is sharded"
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "adafactor": "adafactor"} | _BITSANDBYTES
# The run's key for a field of the arguments that it sets, where that is not `train` and the field's name.
_KEYS = {
    "output_dir": "store",
    "run_name": "name",
    "seed": "seed",
    "use_cpu": "generator.device",
    "max_steps": "train.steps",
    "num_train_epochs": "train.steps",
    "per_device_train_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "optim": "train.optimizer",
    "lr_scheduler_type": "train.lr_scheduler",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "activation_checkpointing": "train.gradient_checkpointing",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "displacement": "train.displacement.action",
} | {f"displacement_{name}": f"train.displacement.{name}" for name in _WATCH}


def training_arguments(
    train: TrainConfig, output_dir: str | Path, seed: int, processes: int = 1, **changes: Any
) -> DiffusionDPOConfig:
    """The Trainer's arguments for a run's settings, on `processes` processes.

    A micro-batch is the greatest part of a process's share of the batch that `micro_batch_size` allows.
    ValueError, one line, where the batch does not divide into processes, the optimiser cannot run here, or
    an option is unknown, has a setting of its own or is refused by transformers.
    """
    share, rest = divmod(train.batch_size, processes)
    if rest:
        raise ValueError(
            f"train.batch_size={train.batch_size}: not a multiple of {processes} processes; the nearest is "
            f"{max(1, round(train.batch_size / processes)) * processes}"
        )
    micro = next(size for size in range(min(train.micro_batch_size, share), 0, -1) if share % size == 0)
    _check_optimizer(train.optimizer, bool(changes.get("use_cpu")))
    settings = {
        "output_dir": str(output_dir),
        "seed": seed,
        "max_steps": train.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "optim": _OPTIMIZERS[train.optimizer],
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler,
        "warmup_steps": train.warmup_steps,
        "max_grad_norm": train.max_grad_norm,
        "weight_decay": train.weight_decay,
        "bf16": train.precision == "bf16",
        "fp16": train.precision == "fp16",
        "activation_checkpointing": train.gradient_checkpointing,
        "save_steps": train.save_steps,
        "logging_steps": train.logging_steps,
        "report_to": train.report_to or "none",
    }
    settings |= {name: getattr(train, name) for name in _LOSS}
    watch = train.displacement
    action = watch.action or ("off" if train.loss == "mapo" else "warn")
    settings |= {"displacement": action} | {f"displacement_{name}": getattr(watch, name) for name in _WATCH}
    _check_options(train.options, settings)
    own = {"save_total_limit": 2, "disable_tqdm": False}
    with _told(f"train.precision = {train.precision!r} with train.options = {train.options}"):
        return DiffusionDPOConfig(**own | train.options | settings | changes)


def check_training(train: TrainConfig, processes: int, cpu: bool) -> None:
    """Refuse what the Trainer would refuse once all else is made: its arguments, its optimiser and its
    schedule are made for a parameter of no use. ValueError, one line."""
    arguments = training_arguments(train, "checkpoints", 0, processes, use_cpu=cpu)
    with _told(f"train.optimizer = {train.optimizer!r} with train.options = {train.options}"):
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = kind([nn.Parameter(torch.zeros(1))], **settings)
    more = arguments.lr_scheduler_kwargs
    schedule = f"train.lr_scheduler = {train.lr_scheduler!r}"
    with _told(f"{schedule} with train.options.lr_scheduler_kwargs = {more}"):
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            arguments.warmup_steps,
            arguments.max_steps,
            more,
        )


@contextmanager
def _told(settings: str) -> Iterator[None]:
    """Name the settings in what transformers or torch refuse."""
    try:
        yield
    except (TypeError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{settings}: {reason}") from error


def _check_options(options: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse options that transformers does not have, and those that the run sets."""
    known = {entry.name for entry in fields(DiffusionDPOConfig)}
    for name in sorted(options):
        if name not in known:
            raise ValueError(f"train.options.{name}: not a field of transformers.TrainingArguments")
        if name.startswith(_FOREIGN):
            raise ValueError(f"train.options.{name}: must be left out; {_INSTEAD}")
        if name in settings or name in _KEYS:
            raise ValueError(f"train.options.{name}: set {_KEYS.get(name, f'train.{name}')} instead")
    limit = options.get("save_total_limit")
    if limit is not None and not isinstance(limit, int):
        raise ValueError(f"train.options.save_total_limit = {limit!r}: must be a whole number or null")


def _check_optimizer(name: str, cpu: bool) -> None:
    """Refuse an optimiser whose package or device is not there, or that cannot be sharded."""
    if name == "adafactor" and wants_fsdp():
        raise ValueError(
            "train.optimizer = 'adafactor': not with FSDP, whose sharded weights it cannot step; "
            "use adamw, or configs/accelerate/ddp.yaml"
        )
    if name not in _BITSANDBYTES:
        return
    instead = "use adamw or adafactor"
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"train.optimizer = {name!r}: needs bitsandbytes, which is not installed "
            f"(pip install bitsandbytes); or {instead}"
        )
    if cpu:
        raise ValueError(f"train.optimizer = {name!r}: needs a GPU, and this run is on the CPU; {instead}")


def check_integrations(names: Sequence[str]) -> None:
    """Refuse a name in train.report_to that transformers does not have, or whose package is not installed."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    known = sorted(set(INTEGRATION_TO_CALLBACK) - {"wandb"})
    for name in names:
        if name == "wandb":
            raise ValueError("train.report_to = wandb: set tracking.wandb.project instead")
        if name not in known:
            raise ValueError(f"train.report_to = {name}: must be among {', '.join(known)}")
        if name not in get_available_reporting_integrations():
            raise ValueError(f"train.report_to = {name}: it is not installed; pip install {name}")
