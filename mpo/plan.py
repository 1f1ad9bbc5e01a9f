"""What a run would cost, from configs and safetensors headers alone. Imports no torch and loads no model."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from mpo.artifacts import Round, Run
from mpo.config import GRANULARITIES, ConfigError, RunConfig
from mpo.memory import memory_lines, size_of, trained_parameters
from mpo.model_size import FAMILIES, ModelSize, read_size
from mpo.objectives import FINER, parts, weights_in_total
from mpo.store import Artifact

_ANSWER = 40  # bytes of a score table a question


@dataclass(frozen=True)
class Step:
    """One stage of the plan."""

    stage: str
    work: str
    artifact: Artifact
    shards: int  # 0: made in one piece, or how many is not known
    calls: str = ""
    disk: float | None = 0.0  # bytes; None: not known

    @property
    def state(self) -> str:
        """How much of it is there."""
        if self.artifact.done:
            return "there"
        made = len(self.artifact.shards("candidates") + self.artifact.shards("scores"))
        if made:
            return f"{made} of {self.shards} shards" if self.shards else f"{made} shards"
        return "begun" if self.artifact.folder.is_dir() else "to do"

    @property
    def to_disk(self) -> str:
        """What is still to be written."""
        if self.disk is None and not self.artifact.done:
            return "unknown"
        return "" if self.artifact.done or not self.disk else size_of(self.disk)


def plan_table(run: Run) -> None:
    """Print what the run would do, what of it is there already, and what it needs."""
    config = run.config
    check_objectives(config)
    generator = read_size(config.generator.path, config)
    judge = read_size(config.reward.judge, config)
    memory = memory_lines(config, generator, judge)
    planned = steps(run, generator)
    table = Table(
        "stage", "work", "model calls", "to disk", "in the store", title=f"{config.name} -> {run.folder}"
    )
    for step in planned:
        table.add_row(step.stage, step.work, step.calls, step.to_disk, step.state)
    console = Console(soft_wrap=True)
    console.print(table)
    wanted = [step.disk for step in planned if not step.artifact.done]
    least = "at least " if None in wanted else ""
    store = Path(config.store).absolute()
    there = next(folder for folder in (store, *store.parents) if folder.is_dir())
    free = size_of(shutil.disk_usage(there).free)
    console.print(
        f"disk    {least}{size_of(sum(filter(None, wanted)))} to write, {free} free in {config.store}"
    )
    for line in memory:
        console.print(f"memory  {line}")


def steps(run: Run, generator: ModelSize | None) -> list[Step]:
    """The artifacts of the run in order, with what each takes to make."""
    config, made = run.config, run.artifacts
    train, heldout = len(run.train_prompts), len(run.heldout_prompts)
    guided = FAMILIES[config.generator.family].guided and config.generator.guidance_scale > 1
    questions = count_questions(config.reward.checklist)

    def sampled(stage: str, artifact: Artifact, prompts: int, count: int) -> Step:
        shards = math.ceil(prompts / config.generate.shard_size)
        calls = f"{prompts * count * config.generator.steps * (1 + guided):,} denoiser rows"
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
            Step(f"{label}pair", _choice(config), part.pairs, 0),
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


def _choice(config: RunConfig) -> str:
    """By what the pairs are chosen."""
    if config.pairs.source:
        return "as given"
    rule = config.pairs.rule
    return config.objectives.granularity + ("" if rule == "dominance" else f", rule {rule}")


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
    return len(_read_checklist(checklist)["questions"]) or None


def check_objectives(config: RunConfig) -> None:
    """Refuse what the objectives cannot be, as a run does, where the checklist is YAML."""
    names, dims = objective_names(config.reward.checklist), config.objectives.dims
    for granularity in GRANULARITIES if names["question"] else ():  # the yield is told at all of them
        weights_in_total(list(parts(names, granularity, dims)), dims)


def objective_names(checklist: str) -> dict[str, list[str]]:
    """Level -> the names of what carries weight in a YAML checklist as paths, such as `quality.clarity`."""
    paths = [
        (entry.get("dimension", ""), entry.get("subdimension", ""), name)
        for kind in _read_checklist(checklist).values()
        for name, entry in kind.items()
        if entry.get("weight")
    ]
    return {
        level: list(dict.fromkeys(".".join(map(str, path[:depth])) for path in paths))
        for depth, level in enumerate(FINER, 1)
    }


def _read_checklist(path: str) -> dict[str, dict[str, dict]]:
    """The features and the questions of a YAML checklist by id; none of other formats."""
    kinds = ("features", "questions")
    if not path.endswith((".yaml", ".yml")):
        return {kind: {} for kind in kinds}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return {
            kind: {str(name): dict(entry) for name, entry in (content.get(kind) or {}).items()}
            for kind in kinds
        }
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        raise ConfigError(
            f"reward.checklist = {path}: no checklist; `mpo checklist check` says what is wrong"
        ) from None


def _weights_bytes(config: RunConfig, generator: ModelSize | None) -> float | None:
    """Of the trained parameters on disk, in float32."""
    known = generator is not None and generator.denoiser
    return trained_parameters(config, generator) * 4.0 if known else None
