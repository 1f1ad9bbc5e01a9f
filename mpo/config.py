"""Every setting of a run, as dataclasses. Imports neither torch nor anything heavy.

A run is one flat YAML file plus `key=value` overrides; `load` merges both into `RunConfig` through structured
OmegaConf, so that unknown keys and wrong types are refused with one line, and returns plain dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STAGES = ("generate", "score", "pair", "train", "evaluate", "report")
GRANULARITIES = ("total", "dimension", "subdimension", "question")


@dataclass
class PromptsConfig:
    """Prompt files: one prompt a line (.txt), or a `prompt` column (.jsonl, .parquet, .csv)."""

    train: str = "???"
    heldout: str = "???"
    train_limit: int | None = None
    heldout_limit: int | None = None


@dataclass
class GeneratorConfig:
    """The diffusion model. `path` is a folder or a hub id that `from_pretrained` loads."""

    family: str = "stable_diffusion"
    path: str = "???"
    dtype: str = "float32"  # float32 | bfloat16 | float16
    device: str = "auto"  # auto | cpu | cuda
    steps: int = 30
    guidance_scale: float = 7.5
    height: int | None = None  # pixels; None: the model's own
    width: int | None = None
    frames: int | None = None  # video families
    options: dict[str, Any] = field(default_factory=dict)  # family-specific, named in generators/<family>.py


@dataclass
class GenerateConfig:
    candidates: int = 8  # per prompt
    batch_size: int = 8  # samples the denoiser sees at once
    shard_size: int = 16  # prompts per shard: what a killed run loses at most


@dataclass
class RewardConfig:
    """VisionReward = judge + checklist."""

    judge: str = "???"  # folder or hub id
    kind: str = "transformers"  # transformers | cogvlm2
    checklist: str = "???"  # YAML file, or a folder of the release's files
    template: str | None = None  # prompt template with {question}; None: the judge's own chat template
    dtype: str = "float32"
    device: str = "auto"
    batch_size: int = 16  # media encoded at once
    cache: str | None = None  # score cache; None: <store>/score-cache


@dataclass
class ObjectiveConfig:
    role: str = "improve"  # improve | hold | ignore
    weight: float = 1.0  # scales the objective in the total; never the checklist's own weights
    tolerance: float = 0.0  # by how much the winner may be worse here
    margin: float = 0.0  # for improve: how much better the winner must be here


@dataclass
class ObjectivesConfig:
    granularity: str = "dimension"  # total | dimension | subdimension | question
    dims: dict[str, ObjectiveConfig] = field(default_factory=dict)


@dataclass
class PairsConfig:
    margin: float = 0.1  # least difference in the total; > 0
    tolerance: float = 0.0  # slack of the dominance test, every objective
    select: str = "all"  # all | top | best_worst
    k: int = 4  # pairs a prompt for select=top
    cap: int | None = None  # most pairs kept a prompt


@dataclass
class LoraConfig:
    rank: int = 16
    alpha: int = 16
    dropout: float = 0.0
    targets: list[str] | None = None  # None: the family's attention projections


@dataclass
class TrainConfig:
    mode: str = "lora"  # lora | full
    lora: LoraConfig = field(default_factory=LoraConfig)
    beta: float = 2000.0  # mean-reduced error, as in the papers
    sft_weight: float = 0.0  # lambda of the term lambda * e_w
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant_with_warmup"  # any name of transformers' schedulers
    warmup_steps: int = 0
    steps: int = 500  # optimiser steps
    batch_size: int = 32  # pairs an optimiser step, over all processes
    micro_batch_size: int = 8  # pairs a forward pass and process
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    precision: str = "no"  # no | bf16 | fp16
    gradient_checkpointing: bool = False
    save_steps: int = 50
    logging_steps: int = 10
    report_to: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)  # further fields of transformers.TrainingArguments


@dataclass
class EvaluateConfig:
    samples: int = 1  # per held-out prompt, base and tuned from the same seeds
    bootstrap: int = 2000  # resamples of prompts for the 95 % intervals
    fail_on_regression: bool = False
    oracle: str | None = None  # None | quickstart: one more reward that evaluates and never trains


@dataclass
class TrackingConfig:
    project: str | None = None  # wandb project; None: wandb is off
    mode: str = "online"  # online | offline


@dataclass
class RunConfig:
    name: str = "???"
    seed: int = 0
    run_dir: str = "runs/${name}"
    store: str = "runs/store"  # artifacts that runs share
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
