"""What a run would cost, from configs and safetensors headers alone. Imports no torch and loads no model."""

from __future__ import annotations

import json
import math
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from mpo.artifacts import Round, Run
from mpo.config import RunConfig
from mpo.memory import (
    DENOISERS,
    DTYPE_BYTES,
    activations,
    latent_scale,
    latent_size,
    lora_targets,
    memory_lines,
    size_of,
    trained_parameters,
)
from mpo.store import Artifact, hub_snapshot

_PIXEL = 2.0  # bytes of a PNG a pixel, for a generously detailed picture
_CLIP_PIXEL = 0.5  # bytes of an MP4 a pixel and frame: a third of what it has before it is coded, a bound
_ANSWER = 40  # bytes of a score table a question


@dataclass(frozen=True)
class ModelSize:
    """What the headers and configs of a model folder say."""

    parameters: dict[str, int]  # by component; "." for a model without components
    adapted: int  # inputs plus outputs of the modules that get an adapter: LoRA parameters a rank
    sample_bytes: float | None  # of one sample on disk, picture or clip and float32 latents; None: not told
    prompt_bytes: int  # of one prompt's float32 conditioning
    activations: tuple[float, float] | None = None  # numbers kept of a row, without and with checkpointing

    def bytes(self, dtype: str, *components: str) -> int:
        """Weights of the components, or of all."""
        chosen = components or tuple(self.parameters)
        return sum(self.parameters.get(name, 0) for name in chosen) * DTYPE_BYTES[dtype]


@dataclass(frozen=True)
class Step:
    """One stage of the plan."""

    stage: str
    work: str
    artifact: Artifact
    shards: int  # 0: made in one piece, or how many is not known
    calls: str = ""
    disk: float | None = 0.0

    @property
    def state(self) -> str:
        """How much of it is there."""
        if self.artifact.done:
            return "there"
        made = len(self.artifact.shards("candidates") + self.artifact.shards("scores"))
        if made:
            return f"{made} of {self.shards} shards" if self.shards else f"{made} shards"
        return "begun" if self.artifact.folder.is_dir() else "to do"


def plan_table(run: Run) -> None:
    """Print what the run would do, what of it is there already, and what it needs."""
    config = run.config
    generator = read_size(config.generator.path, config)
    judge = read_size(config.reward.judge, config)
    planned = steps(run, generator)
    table = Table(
        "stage", "work", "model calls", "to disk", "in the store", title=f"{config.name} -> {run.folder}"
    )
    for step in planned:
        disk = "" if step.artifact.done or not step.disk else size_of(step.disk)
        table.add_row(step.stage, step.work, step.calls, disk, step.state)
    console = Console(soft_wrap=True)
    console.print(table)
    wanted = sum(step.disk or 0 for step in planned if not step.artifact.done)
    store = Path(config.store).absolute()
    there = next(folder for folder in (store, *store.parents) if folder.is_dir())
    console.print(
        f"disk    {size_of(wanted)} to write, {size_of(shutil.disk_usage(there).free)} free in {config.store}"
    )
    for line in memory_lines(config, generator, judge):
        console.print(f"memory  {line}")


def steps(run: Run, generator: ModelSize | None) -> list[Step]:
    """The artifacts of the run in order, with what each takes to make."""
    config, made = run.config, run.artifacts
    train, heldout = len(run.train_prompts), len(run.heldout_prompts)
    branches = 2 if config.generator.guidance_scale > 1 else 1
    questions = count_questions(config.reward.checklist)

    def sampled(stage: str, artifact: Artifact, prompts: int, count: int) -> Step:
        shards = math.ceil(prompts / config.generate.shard_size)
        calls = f"{prompts * count * config.generator.steps * branches:,} denoiser rows"
        known = generator is not None and generator.sample_bytes is not None
        disk = prompts * (count * generator.sample_bytes + generator.prompt_bytes) if known else None
        work = f"{prompts:,} prompts x {count}, {config.generator.steps} steps"
        return Step(stage, work, artifact, shards, calls, disk)

    def scored(stage: str, artifact: Artifact, pictures: int, shards: int, by: str = "judge") -> Step:
        work = f"{pictures:,} samples" + (f" x {questions} questions" if questions and by == "judge" else "")
        return Step(
            stage, work, artifact, shards, f"{pictures:,} {by} passes", pictures * (questions or 1) * _ANSWER
        )

    several, count = config.evaluate.samples, config.generate.candidates
    planned: list[Step] = []
    for number, part in enumerate(made.rounds, 1):
        label = f"round {number}: " if len(made.rounds) > 1 else ""
        if source := config.pairs.source:  # how many pairs it holds is known when they have been read
            work = f"the pairs of {source}, encoded"
            planned.append(Step("generate", work, part.candidates, 0, disk=None))
            planned.append(Step("score", "both of each pair", part.scores, 0, disk=None))
        else:
            candidates = sampled(f"{label}generate", part.candidates, train, count)
            planned += [candidates, scored(f"{label}score", part.scores, train * count, candidates.shards)]
        planned += [
            Step(f"{label}pair", config.objectives.granularity, part.pairs, 0),
            _training_step(f"{label}train", config, generator, part),
        ]
        for step, (samples, scores) in part.validated.items():
            asked, each = len(run.validation_prompts), config.validate.samples
            drawn = sampled(f"validate: step {step}", samples, asked, each)
            planned += [drawn, scored(f"validate: step {step}", scores, asked * each, drawn.shards)]
        if part.selection:
            disk = _weights_bytes(config, generator)
            planned.append(Step("validate", "best step", part.selection, 0, disk=disk))
    sides = {
        "base": (made.base, made.base_scores, made.base_facts),
        "tuned": (made.tuned, made.tuned_scores, made.tuned_facts),
    }
    for side, (samples, scores, facts) in sides.items():
        drawn = sampled(f"evaluate: {side}", samples, heldout, several)
        planned += [drawn, scored(f"evaluate: {side}", scores, heldout * several, drawn.shards)]
        if facts:
            planned.append(scored(f"evaluate: {side}", facts, heldout * several, drawn.shards, "oracle"))
    return planned + [
        Step("evaluate", "base against tuned", made.evaluation, 0),
        Step("report", "report.html", made.report, 0),
    ]


def _training_step(stage: str, config: RunConfig, generator: ModelSize | None, part: Round) -> Step:
    train = config.train
    rows = train.steps * train.batch_size * 2
    also = "" if train.loss == "mapo" else ", each also by the reference"
    saved = _weights_bytes(config, generator)
    # what is exported, a checkpoint with its optimiser, and the steps that are to be validated
    disk = None if saved is None else saved * (4 + len(part.validated))
    work = f"{train.steps:,} steps x {train.batch_size} pairs, {train.mode}"
    return Step(stage, work, part.training, 0, f"{rows:,} denoiser rows{also}", disk)


def count_questions(checklist: str) -> int | None:
    """How many questions a YAML checklist asks about a sample; None for other formats."""
    if not checklist.endswith((".yaml", ".yml")):
        return None
    content = yaml.safe_load(Path(checklist).read_text(encoding="utf-8"))
    questions = content.get("questions") if isinstance(content, dict) else None
    return len(questions) if isinstance(questions, dict) else None


def read_size(path: str, config: RunConfig) -> ModelSize | None:
    """Sizes from a folder's headers, or from the local copy of a hub id; None where there is none."""
    folder = Path(path) if Path(path).is_dir() else hub_snapshot(path, online=False)
    if folder is None:
        return None
    parameters: dict[str, int] = {}
    adapted, targets = 0, tuple(f".{target}.weight" for target in lora_targets(config))
    for file in (*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")):
        if any(variant in file.name for variant in (".fp16", ".bf16", ".non_ema")):
            continue  # a second copy of the same component
        part = file.parent.relative_to(folder).as_posix()
        for name, shape in _shapes(file):
            parameters[part] = parameters.get(part, 0) + math.prod(shape)
            if part in DENOISERS and len(shape) == 2 and f".{name}".endswith(targets):
                adapted += sum(shape)
    text = [_config(folder / name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    prompt = sum(
        4 * c.get("max_position_embeddings", 512) * c.get("hidden_size", c.get("d_model", 0)) for c in text
    )
    denoiser = next((_config(folder / name) for name in DENOISERS if (folder / name).is_dir()), {})
    vae = _config(folder / "vae")
    latent = latent_size(vae, denoiser, config)
    kept = latent and activations(denoiser, latent)
    return ModelSize(parameters, adapted, latent and _sample_bytes(vae, denoiser, latent), prompt, kept)


def _sample_bytes(
    vae: dict[str, Any], denoiser: dict[str, Any], latent: tuple[int, int, int]
) -> float | None:
    """Of a picture, or of a clip whose VAE makes one latent frame of four; None for unknown channels."""
    channels = vae.get("z_dim") or vae.get("latent_channels") or denoiser.get("in_channels")
    if not channels:
        return None
    frames, height, width = latent
    pixels = height * width * latent_scale(vae) ** 2
    media = _PIXEL * pixels if frames == 1 else _CLIP_PIXEL * pixels * (4 * (frames - 1) + 1)
    return media + 4 * channels * frames * height * width


def _weights_bytes(config: RunConfig, generator: ModelSize | None) -> float | None:
    """Of the trained parameters on disk, in float32."""
    known = generator is not None and generator.parameters
    return trained_parameters(config, generator) * 4.0 if known else None


def _shapes(file: Path) -> list[tuple[str, list[int]]]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return [(name, entry["shape"]) for name, entry in header.items() if name != "__metadata__"]


def _config(folder: Path) -> dict:
    file = folder / "config.json"
    return json.loads(file.read_text()) if file.is_file() else {}
