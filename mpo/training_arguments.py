"""DiffusionDPOConfig: TrainingArguments with the loss's settings, and how a run's settings become one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from mpo.config import TrainConfig


@dataclass
class DiffusionDPOConfig(TrainingArguments):
    """`transformers.TrainingArguments` with the loss's settings; `max_steps` says how long to train."""

    beta: float = field(default=2000.0, metadata={"help": "Strength of the reference, mean-reduced errors."})
    sft_weight: float = field(default=0.0, metadata={"help": "Weight of the winner's own error in the loss."})
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False  # a loss that is not finite stops the run instead
    ddp_find_unused_parameters: bool | None = False
    report_to: str | list[str] | None = "none"


def training_arguments(
    train: TrainConfig, output_dir: str | Path, seed: int, processes: int = 1, **changes: Any
) -> DiffusionDPOConfig:
    """The Trainer's arguments for a run's settings, on `processes` processes.

    ValueError where the batch does not divide into micro-batches and processes, or an option is unknown.
    """
    share = train.micro_batch_size * processes
    if train.batch_size % share:
        raise ValueError(
            f"train.batch_size={train.batch_size}: not a multiple of train.micro_batch_size="
            f"{train.micro_batch_size} times {processes} processes; the nearest is "
            f"{max(1, round(train.batch_size / share)) * share}"
        )
    known = {entry.name for entry in fields(DiffusionDPOConfig)}
    if unknown := sorted(set(train.options) - known):
        raise ValueError(f"train.options.{unknown[0]}: not a field of transformers.TrainingArguments")
    settings = {
        "output_dir": str(output_dir),
        "seed": seed,
        "max_steps": train.steps,
        "per_device_train_batch_size": train.micro_batch_size,
        "gradient_accumulation_steps": train.batch_size // share,
        "beta": train.beta,
        "sft_weight": train.sft_weight,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler,
        "warmup_steps": train.warmup_steps,
        "max_grad_norm": train.max_grad_norm,
        "weight_decay": train.weight_decay,
        "bf16": train.precision == "bf16",
        "fp16": train.precision == "fp16",
        "activation_checkpointing": train.gradient_checkpointing,
        "save_steps": train.save_steps,
        "save_total_limit": 2,
        "logging_steps": train.logging_steps,
        "report_to": train.report_to or "none",
        "disable_tqdm": False,
    }
    return DiffusionDPOConfig(**settings | train.options | changes)
