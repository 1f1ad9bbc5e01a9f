"""What a run makes, and the name in the store of each part. Imports no torch.

Every name follows from the config and its input files alone, so `mpo plan` knows before anything has run what
is there already, and runs that agree up to some stage share everything up to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mpo.config import RunConfig, to_yaml
from mpo.identities import Inputs, identify, settings_of
from mpo.prompts import prompt_sets, validation_prompts
from mpo.store import Artifact, digest, write_bytes, writing

# Raised when a stage's code changes what it writes, so that old artifacts are not taken for new ones.
VERSIONS = {"generate": 2, "score": 2, "pair": 1, "train": 3, "select": 1, "evaluate": 2, "report": 2}
CONFIG = "config.yaml"
CARD = "README.md"  # of the tuned model

# Settings of training that change neither the adapter nor what it is called.
_UNSEEN = ("save_steps", "logging_steps", "report_to")


@dataclass(frozen=True)
class Round:
    """Once from sampling to a tuned model. A run has one, or several one after the other."""

    candidates: Artifact
    scores: Artifact
    pairs: Artifact
    training: Artifact
    validated: Mapping[
        int, tuple[Artifact, Artifact]
    ]  # step -> validation samples of its weights, and scores
    selection: Artifact | None  # the best of them; None: the last step's weights are taken
    before: Artifact | None  # whose weights the round starts with; None: the base model's
    seed: int

    @property
    def result(self) -> Artifact:
        """The artifact that holds the tuned model."""
        return self.selection or self.training

    def items(self) -> list[tuple[str, Artifact]]:
        found = [(name, getattr(self, name)) for name in ("candidates", "scores", "pairs", "training")]
        for step, (samples, scores) in self.validated.items():
            found += [(f"validation_{step}", samples), (f"validation_{step}_scores", scores)]
        return found + ([("selection", self.selection)] if self.selection else [])


@dataclass(frozen=True)
class Artifacts:
    """The artifacts of one run in the order in which they are made; the first four are its last round's."""

    candidates: Artifact
    scores: Artifact
    pairs: Artifact
    training: Artifact
    base: Artifact  # samples for the held-out prompts, before training
    base_scores: Artifact
    base_facts: Artifact | None  # the same samples by the oracle
    tuned: Artifact  # samples for the held-out prompts from the same seeds, after training
    tuned_scores: Artifact
    tuned_facts: Artifact | None
    evaluation: Artifact
    report: Artifact
    rounds: tuple[Round, ...] = ()

    def items(self) -> list[tuple[str, Artifact]]:
        """(name, artifact) in order, without those that this run does not make."""
        found = []
        for number, part in enumerate(self.rounds, 1):
            prefix = f"round_{number}_" if number < len(self.rounds) else ""
            found += [(prefix + name, artifact) for name, artifact in part.items()]
        names = [entry.name for entry in fields(self) if entry.name not in ("rounds", *dict(found))]
        found += [(name, getattr(self, name)) for name in names]
        return [(name, artifact) for name, artifact in found if artifact is not None]

    @property
    def result(self) -> Artifact:
        """The artifact that holds the tuned model."""
        return self.rounds[-1].result if self.rounds else self.training


@dataclass(frozen=True)
class Run:
    """A config with its prompts and artifacts."""

    config: RunConfig
    train_prompts: list[str]
    heldout_prompts: list[str]
    artifacts: Artifacts
    validation_prompts: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    def publish(self) -> None:
        """Lay out the run's folder: its config, links to what is complete, the evaluation and the report."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / CONFIG, to_yaml(self.config).encode())
        made = self.artifacts
        for name, artifact in made.items():
            _link(self.folder / "artifacts" / name, artifact.folder, artifact.done)
        for name in ("adapter", "pipeline"):
            _link_inside(self.folder / name, made.result.folder / name, made.result.done)
            if made.report.done and (self.folder / name).is_dir():
                write_bytes(self.folder / name / CARD, (made.report.folder / CARD).read_bytes())
        files = {"evaluation.json": made.evaluation, "report.html": made.report, "curves.csv": made.report}
        for name, artifact in files.items():
            if artifact.done:
                write_bytes(self.folder / name, (artifact.folder / name).read_bytes())
            else:
                (self.folder / name).unlink(missing_ok=True)


def resolve(config: RunConfig, now: bool = True) -> Run:
    """The run that `config` describes.

    Raises FileNotFoundError or ValueError, in one line with the setting's name, where an input is missing or
    of no use. With `now=False` nothing large is hashed and no network asked; what cannot be known then counts
    as not made yet.
    """
    train, heldout = prompt_sets(config.prompts)
    validation = []
    if config.validate.every:
        validation = validation_prompts(config.prompts, config.validate.prompts, train, heldout)
    prompts = {"train": train, "heldout": heldout, "validation": validation}
    made = _Names(config, prompts, identify(config, now)).all()
    return Run(config, train, heldout, made, validation)


@dataclass(frozen=True)
class _Names:
    """The artifacts of a config, given what its inputs are."""

    config: RunConfig
    prompts: Mapping[str, Sequence[str]]  # train, heldout and validation
    inputs: Inputs

    def made(self, stage: str, **inputs: Any) -> Artifact:
        return Artifact.at(Path(self.config.store), stage, {"version": VERSIONS[stage], **inputs})

    def samples(
        self, purpose: str, count: int, adapter: str | None = None, seed: int | None = None
    ) -> Artifact:
        """Samples for the prompts of a purpose; of the base model where there is no `adapter`."""
        return self.made(
            "generate",
            generator=self.inputs.generator,
            adapter=adapter,
            prompts=digest(list(self.prompts[purpose])),
            seed=[self.config.seed if seed is None else seed, purpose],
            samples=count,
            shard_size=self.config.generate.shard_size,
        )

    def scores(self, of: Artifact, by: dict[str, Any] | None = None) -> Artifact:
        return self.made("score", samples=of.name, reward=by or self.inputs.reward)

    def candidates(self, start: str | None, seed: int) -> Artifact:
        """What a round pairs: samples, or what was brought from elsewhere."""
        if not self.config.pairs.source:
            return self.samples("train", self.config.generate.candidates, start, seed)
        size = self.config.generate.shard_size
        return self.made(
            "generate", generator=self.inputs.generator, **self.inputs.data, samples=2, shard_size=size
        )

    def round(self, number: int, before: Artifact | None) -> Round:
        """Round `number`, from 0; a run of more rounds shares its first with a run of one."""
        config = self.config
        seed, start = config.seed + number, before and before.name
        candidates = self.candidates(start, seed)
        scored = self.scores(candidates)
        count = config.pairs.candidates or config.generate.candidates
        choice = {
            "objectives": asdict(config.objectives),
            "pairs": settings_of(config.pairs, "source", "allow_bad") | {"candidates": count},
        }
        pairs = self.made("pair", scores=scored.name, **choice, seed=seed)
        further = {"start": start, "reference": config.reference} if before else {}
        further |= {"keep": config.validate.every} if config.validate.every else {}
        training = self.made(
            "train", pairs=pairs.name, train=settings_of(config.train, *_UNSEEN), seed=seed, **further
        )
        validated, selection = {}, None
        if config.validate.every:
            for step in steps_to_validate(config):
                weights = f"{training.name}/{step}" if step else start
                drawn = self.samples("validation", config.validate.samples, weights)
                validated[step] = drawn, self.scores(drawn)
            names = [scores.name for _, scores in validated.values()]
            selection = self.made("select", training=training.name, scores=names, **choice)
        return Round(candidates, scored, pairs, training, validated, selection, before, seed)

    def all(self) -> Artifacts:
        rounds: list[Round] = []
        for number in range(self.config.rounds):
            rounds.append(self.round(number, rounds[-1].result if rounds else None))
        last, evaluate = rounds[-1], self.config.evaluate
        base = self.samples("heldout", evaluate.samples)
        tuned = self.samples("heldout", evaluate.samples, last.result.name)
        base_scores, tuned_scores = self.scores(base), self.scores(tuned)
        base_facts, tuned_facts = (
            self.scores(part, self.inputs.oracle) if self.inputs.oracle else None for part in (base, tuned)
        )
        evaluation = self.made(
            "evaluate",
            scores=[part.name for part in (base_scores, tuned_scores, base_facts, tuned_facts) if part],
            bootstrap=evaluate.bootstrap,
            seed=self.config.seed,
        )
        report = self.made(
            "report", name=self.config.name, training=last.training.name, evaluation=evaluation.name
        )
        return Artifacts(
            last.candidates, last.scores, last.pairs, last.training,
            base, base_scores, base_facts, tuned, tuned_scores, tuned_facts, evaluation, report,
            tuple(rounds),
        )  # fmt: skip


def steps_to_validate(config: RunConfig) -> list[int]:
    """The optimiser steps whose weights are compared: 0 (as the round began), every n-th, and the last."""
    return [*range(0, config.train.steps, config.validate.every or config.train.steps), config.train.steps]


def weights(made: Artifact) -> Path:
    """What a result holds of the tuned model: a folder with its adapter, or a pipeline."""
    adapter = made.folder / "adapter"
    return adapter if adapter.is_dir() else made.folder / "pipeline"


def kept_weights(training: Artifact, step: int) -> Path:
    """Where a training run keeps the weights of an optimiser step that is to be validated."""
    return training.folder / "steps" / f"{step:06d}"


def reached(made: Round) -> dict[int, int]:
    """The steps whose weights are compared, and as which planned step each is kept: training that was stopped
    early kept what it ended with in the place of the last."""
    ended = made.training.facts()["steps"]
    within = {step: step for step in made.validated if step <= ended}
    return dict(sorted(({ended: max(made.validated)} | within).items()))


def _link(path: Path, target: Path, there: bool) -> None:
    """Let `path` lead to `target` if that is `there`, and to nothing otherwise."""
    if not (there and target.exists()):
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary:
        temporary.symlink_to(
            os.path.relpath(target.resolve(), path.parent.resolve()), target_is_directory=True
        )


def _link_inside(folder: Path, target: Path, there: bool) -> None:
    """Let `folder` hold links to what `target` holds if that is `there`, with room for a file beside them."""
    if folder.is_symlink():  # as earlier versions had it
        folder.unlink()
    wanted = {path.name: path for path in target.iterdir()} if there and target.is_dir() else {}
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in wanted:
                path.unlink()
        if not wanted:
            folder.rmdir()
    for name, path in wanted.items():
        _link(folder / name, path, True)
