"""Every setting of a run, as dataclasses. Imports neither torch nor anything heavy.

A run is one flat YAML file plus `key=value` overrides; `load` merges both into `RunConfig` through structured
OmegaConf, so that unknown keys and wrong types are refused with one line, and returns plain dataclasses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mpo.config_checks import ConfigError, check, renamed
from mpo.config_keys import check_keys, explain

STAGES = ("generate", "score", "pair", "train", "evaluate", "report")
GRANULARITIES = ("total", "dimension", "subdimension", "question")
FAMILIES = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "cogvideox", "wan")
RULES = ("dominance", "total", "majority", "normalised", "pareto", "random")
PAPER_SHARE = 0.43  # of all pairs, kept with 8 candidates a prompt (VisionReward, arXiv 2412.21059, SDXL)
LOSSES = ("sigmoid", "ipo", "hinge", "poly", "mapo")
DISPLACEMENT = ("warn", "stop", "lower_rate", "safeguard")  # what to do about it
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor")
SCHEDULERS = (  # transformers' names; the last three need train.options.lr_scheduler_kwargs
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
)  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
_DIMS = "objectives.dims."


def one_of(default: str | None, *allowed: str | None) -> Any:
    """A field that takes one of the `allowed` values."""
    return field(default=default, metadata={"one_of": allowed})


def number(
    default: float | str | None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    word: str | None = None,
) -> Any:
    """A number field with bounds: `least` is allowed itself, `above` and `below` are not; or the `word`."""
    bounds = {"least": least, "above": above, "below": below, "word": word}
    return field(default=default, metadata=bounds)


@dataclass
class PromptsConfig:
    """Prompt files: one prompt a line (.txt), or a `prompt` column (.jsonl, .parquet, .csv)."""

    train: str | None = None  # may be left out where pairs.from says what to train on
    heldout: str = "???"
    train_limit: int | None = number(None, least=1)
    heldout_limit: int | None = number(None, least=2)  # an interval needs two
    validation: str | None = None  # None: those of `train` that follow its first train_limit


@dataclass
class GeneratorConfig:
    """The diffusion model. `path` is a folder or a hub id that `from_pretrained` loads."""

    family: str = one_of("stable_diffusion", *FAMILIES)
    path: str = "???"
    dtype: str = one_of("float32", *DTYPES)
    device: str = one_of("auto", *DEVICES)
    steps: int = number(30, least=1)
    guidance_scale: float = number(7.5, least=0)
    height: int | None = number(None, least=1)  # pixels; None: the model's own
    width: int | None = number(None, least=1)
    frames: int | None = number(None, least=1)  # video families
    options: dict[str, Any] = field(default_factory=dict)  # family-specific, named in generators/<family>.py


@dataclass
class GenerateConfig:
    candidates: int = number(8, least=2)  # per prompt
    batch_size: int = number(8, least=1)  # samples the denoiser sees at once
    shard_size: int = number(16, least=1)  # prompts per shard: what a killed run loses at most


@dataclass
class RewardConfig:
    """VisionReward = judge + checklist."""

    judge: str = "???"  # folder or hub id
    kind: str | None = one_of(
        None, None, "transformers", "cogvlm2"
    )  # None: told from the judge's config.json
    checklist: str = "???"  # YAML file, or a folder of the release's files
    template: str | None = None  # prompt template with {question}; None: the judge's own chat template
    dtype: str = one_of("float32", *DTYPES)
    device: str = one_of("auto", *DEVICES)
    batch_size: int | None = number(None, least=1)  # media encoded at once; None: 4 clips, 16 images
    frames: str = "per_second"  # frames of a clip: per_second (the release's rule) | uniform:n | first:n
    policy: str = one_of("release", "release", "strict")  # how a folder of the release's files is read
    questions: str = one_of("select", "select", "full")  # which of its question lists
    features: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # checklist feature -> {kind: vqascore | clip | judge}
    min_mass: float = number(0.5, least=0, below=1)  # least probability of yes and no together
    cache: str | None = None  # score cache; None: <store>/score-cache


@dataclass
class ObjectiveConfig:
    role: str = one_of("improve", "improve", "hold", "ignore")
    weight: float = number(
        1.0, least=0
    )  # scales the objective in the total; never the checklist's own weights
    tolerance: float | None = number(None, least=0)  # how much worse the winner may be; None: pairs.tolerance
    margin: float = number(0.0, least=0)  # for improve: how much better the winner must be here


@dataclass
class ObjectivesConfig:
    granularity: str = one_of("dimension", *GRANULARITIES)
    dims: dict[str, ObjectiveConfig] = field(default_factory=dict)


@dataclass
class PairsConfig:
    rule: str = one_of("dominance", *RULES)  # which of two candidates is preferred, if either
    margin: float = number(0.1, above=0)  # least difference in the total
    tolerance: float = number(0.0, least=0)  # slack of the objectives that set none of their own
    select: str = one_of("all", "all", "top", "best_worst")
    k: int = number(4, least=1)  # pairs a prompt for select=top
    cap: int | None = number(None, least=1)  # most pairs kept a prompt
    candidates: int | None = number(None, least=2)  # only the first so many of each prompt; None: all
    source: str | None = None  # written `from`: a folder or hub data set of pairs, in the place of sampling
    allow_bad: float = number(0.05, least=0, below=1)  # of its rows, how large a share may be of no use


@dataclass
class LoraConfig:
    rank: int = number(16, least=1)
    alpha: int = number(16, least=1)
    dropout: float = number(0.0, least=0, below=1)
    targets: list[str] | None = None  # None: the family's attention projections


@dataclass
class DisplacementConfig:
    """The watch on the winner's error above the reference's: while its running mean stays positive, the
    margin is won by ruining the loser more than the winner, and pictures decay."""

    action: str | None = one_of(None, None, "off", *DISPLACEMENT)  # None: warn, or off without a reference
    patience: int = number(50, least=1)  # optimiser steps above the threshold before anything is done
    threshold: float = number(0.001, least=0)  # of the running mean, as a share of the reference's error
    decay: float = number(0.98, least=0, below=1)  # of the running mean, an optimiser step
    factor: float = number(0.5, above=0, below=1)  # of the learning rate, for lower_rate


@dataclass
class TrainConfig:
    """Training; the sources of the loss's switches stand in mpo/losses.py."""

    mode: str = one_of("lora", "lora", "full")
    lora: LoraConfig = field(default_factory=LoraConfig)
    loss: str = one_of("sigmoid", *LOSSES)
    beta: int | float | str = number(2000.0, above=0, word="auto")  # mean-reduced error, as in the papers
    beta_target: float = number(0.2, above=0, below=0.5)  # beta=auto: gradient factor of a pair told apart
    label_smoothing: float = number(0.0, least=0, below=0.5)  # loss=sigmoid: share of labels that are wrong
    poly_alpha: float = number(0.0, least=-1)  # loss=poly: above 0, pairs not told apart yet weigh more
    sft_weight: float = number(0.0, least=0)  # lambda of the term lambda * e_w
    dpop_weight: float = number(0.0, least=0)  # of the winner's excess error, taken off the margin
    margin_offset: float = number(0.0, least=0)  # margin to exceed by a pair of typical gap in the reward
    safeguard: bool = False  # scale the loser's gradient so that a step does not raise the winner's error
    safeguard_mu: float = number(0.9, least=0, below=1)
    displacement: DisplacementConfig = field(default_factory=DisplacementConfig)
    optimizer: str = one_of("adamw", *OPTIMIZERS)
    learning_rate: float = number(1e-4, above=0)
    lr_scheduler: str = one_of("constant_with_warmup", *SCHEDULERS)
    warmup_steps: int = number(0, least=0)
    steps: int = number(500, least=1)  # optimiser steps
    batch_size: int = number(32, least=1)  # pairs an optimiser step, over all processes
    micro_batch_size: int = number(8, least=1)  # most pairs a forward pass and process
    max_grad_norm: float = number(1.0, least=0)
    weight_decay: float = number(0.0, least=0)
    precision: str = one_of("no", "no", "bf16", "fp16")
    gradient_checkpointing: bool = False
    save_steps: int = number(50, least=1)
    logging_steps: int = number(10, least=1)
    report_to: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)  # other fields of transformers.TrainingArguments


@dataclass
class ValidateConfig:
    """Which of the checkpoints is taken: the last, or the best by reward on prompts of its own."""

    every: int | None = number(None, least=1)  # optimiser steps; None: the last checkpoint is taken
    prompts: int = number(32, least=1)
    samples: int = number(1, least=1)  # per prompt, from the same seeds for every checkpoint


@dataclass
class EvaluateConfig:
    samples: int = number(1, least=1)  # per held-out prompt, base and tuned from the same seeds
    bootstrap: int = number(2000, least=100)  # resamples of prompts for the 95 % intervals
    fail_on_regression: bool = False
    # One more reward, that of a bundled world: evaluates, never trains or pairs.
    oracle: str | None = one_of(None, None, "quickstart", "quickstart_video")


@dataclass
class WandbConfig:
    project: str | None = None  # None: wandb is off
    entity: str | None = None  # None: the account's own
    mode: str = one_of("online", "online", "offline")


@dataclass
class TrackingConfig:
    """Where a run is followed; train.report_to has the Trainer's other integrations."""

    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class RunConfig:
    name: str = "???"
    seed: int = number(0, least=0)
    run_dir: str = "runs/${name}"
    store: str = "runs/store"  # artifacts that runs share
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    rounds: int = number(1, least=1)  # from the second on, candidates come from the model tuned so far
    reference: str = one_of("base", "base", "previous")  # what a later round's model is compared with
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that the YAML file `path` and the `key=value` overrides describe.

    Raises ConfigError with one line for an unknown key, a wrong type, a value out of bounds or a setting left
    out, and FileNotFoundError where there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    layers = [OmegaConf.structured(RunConfig), _read_yaml(path), _read_overrides(overrides)]
    try:
        merged = OmegaConf.merge(*layers)
        missing = OmegaConf.missing_keys(merged) - {"run_dir"}  # run_dir only repeats a missing name
        if merged.prompts.train is None and merged.pairs.source is None:
            missing.add("prompts.train")
        if missing:
            raise ConfigError(f"{path}: not set: {', '.join(sorted(missing))}")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, layers[1:], RunConfig)) from error
    check(config)
    return config


def as_written(config: RunConfig) -> dict[str, Any]:
    """The resolved config by the keys that a file has."""
    found = asdict(config)
    found["pairs"] = {"from" if key == "source" else key: value for key, value in found["pairs"].items()}
    return found


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that `load` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(as_written(config)))


def _read_yaml(path: Path) -> Any:
    try:
        layer = renamed(OmegaConf.load(path))
        check_keys(OmegaConf.to_container(layer), RunConfig)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return layer


def _read_overrides(overrides: Sequence[str]) -> Any:
    for override in overrides:
        if not override.partition("=")[1] or override.startswith("="):
            raise ConfigError(f"override {override!r}: must be key=value, as in train.beta=500")
    plain = [override for override in overrides if not override.startswith(_DIMS)]
    try:
        layer = OmegaConf.from_dotlist(plain)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"overrides {' '.join(plain)}: a value is not valid YAML: {reason}") from None
    for override in overrides:
        if override.startswith(_DIMS):
            layer = OmegaConf.merge(layer, _objective_override(override))
    layer = renamed(layer)
    check_keys(OmegaConf.to_container(layer), RunConfig)
    return layer


def _objective_override(override: str) -> Any:
    """An override under objectives.dims, whose names may hold dots: objectives.dims.dynamic.*.role=hold."""
    key, _, value = override.removeprefix(_DIMS).partition("=")
    entry, _, setting = key.rpartition(".")
    value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    if not entry or isinstance(value, dict):  # a whole entry: objectives.dims.dynamic={role: hold}
        return OmegaConf.create({"objectives": {"dims": {key: value}}})
    return OmegaConf.create({"objectives": {"dims": {entry: {setting: value}}}})
