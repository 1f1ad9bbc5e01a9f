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

import quickstart
from mpo.config import RunConfig, to_yaml
from mpo.prompts import prompt_sets, validation_prompts
from mpo.store import Artifact, Identities, digest, hub_snapshot, write_bytes, writing
from rewards.fetch import RELEASES, fetched_folder

# Raised when a stage's code changes what it writes, so that old artifacts are not taken for new ones.
VERSIONS = {"generate": 1, "score": 2, "pair": 1, "train": 1, "select": 1, "evaluate": 1, "report": 2}
CONFIG = "config.yaml"
CARD = "README.md"  # of the tuned model

# Settings of training that change neither the adapter nor what it is called.
_UNSEEN = ("save_steps", "logging_steps", "report_to")

_FEATURE_FILES = ("path", "tokenizer", "processor")  # keys of a feature that name files

_COMMON = ("facts.py", "scenes.py")
_ORACLES = {  # the code that decides what an oracle says
    "quickstart": ("oracle.py", "world.py", *_COMMON),
    "quickstart_video": ("video/oracle.py", "video/world.py", *_COMMON),
}


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
    identities = Identities(Path(config.store))

    def identity(setting: str, path: str) -> str | None:
        try:
            return identities.of(path, now)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{setting} = {error}") from error

    _check_model("generator.path", config.generator.path, "model_index.json")
    _check_model("reward.judge", config.reward.judge, "config.json")
    generator = _settings(config.generator, "device") | {
        "path": identity("generator.path", config.generator.path)
    }
    reward = _settings(config.reward, "device", "batch_size", "cache")
    reward["judge"] = identity("reward.judge", config.reward.judge)
    reward["checklist"] = identities.of(_checklist_path(config.reward.checklist))
    reward["features"] = {
        feature: {
            key: identity(f"reward.features.{feature}.{key}", value) if key in _FEATURE_FILES else value
            for key, value in values.items()
            if key not in ("device", "batch_size")
        }
        for feature, values in config.reward.features.items()
    }
    oracle = None
    if config.evaluate.oracle:
        sources = [Path(quickstart.__path__[0]) / name for name in _ORACLES[config.evaluate.oracle]]
        oracle = {
            "oracle": config.evaluate.oracle,
            "code": [identities.of(str(source)) for source in sources],
        }
    data = _data(config.pairs.source, identities, now) if config.pairs.source else {}
    made = _name(config, (train, heldout, validation), generator, reward, oracle, data)
    return Run(config, train, heldout, made, validation)


def _data(source: str, identities: Identities, now: bool) -> dict[str, str | None]:
    """What the pairs from elsewhere are: a folder by its content, a data set of the hub by its commit."""
    if Path(source).is_dir():
        return {"data": identities.of(source, now), "revision": None}
    try:
        snapshot = hub_snapshot(source, online=now, kind="dataset")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"pairs.from = {error}") from error
    revision = snapshot and snapshot.name
    return {"data": f"{source}@{revision}", "revision": revision}


def _checklist_path(source: str) -> str:
    """The file or folder of a checklist, which may be given by the name of a fetched one."""
    if source in RELEASES:
        return str(fetched_folder(source))
    if not Path(source).exists():
        names = ", ".join(RELEASES)
        raise FileNotFoundError(f"reward.checklist = {source}: no such file or folder, nor one of {names}")
    return source


def _check_model(setting: str, path: str, index: str) -> None:
    """Refuse a local folder that holds no model, before anything is made with it."""
    folder = Path(path)
    if not folder.is_dir():
        return  # a hub id, which is looked up
    if not (folder / index).is_file():
        raise FileNotFoundError(f"{setting} = {path!r}: has no {index}, so it is no model folder")
    if not any(folder.rglob("*.safetensors")):
        raise FileNotFoundError(f"{setting} = {path!r}: has no weights (*.safetensors)")


def _name(
    config: RunConfig,
    prompts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    generator: dict[str, Any],
    reward: dict[str, Any],
    oracle: dict[str, Any] | None,
    data: dict[str, str | None],
) -> Artifacts:
    store = Path(config.store)
    train, heldout, validation = prompts

    def made(stage: str, **inputs: Any) -> Artifact:
        return Artifact.at(store, stage, {"version": VERSIONS[stage], **inputs})

    def samples(
        prompts: Sequence[str], purpose: str, count: int, adapter: str | None = None, seed: int = config.seed
    ) -> Artifact:
        return made(
            "generate",
            generator=generator,
            adapter=adapter,
            prompts=digest(list(prompts)),
            seed=[seed, purpose],
            samples=count,
            shard_size=config.generate.shard_size,
        )

    def scores(of: Artifact, by: dict[str, Any]) -> Artifact:
        return made("score", samples=of.name, reward=by)

    def one_round(number: int, before: Artifact | None) -> Round:
        """Round `number`, from 0; a run of more rounds shares its first with a run of one."""
        seed, start = config.seed + number, before and before.name
        if config.pairs.source:
            size = config.generate.shard_size
            candidates = made("generate", generator=generator, **data, samples=2, shard_size=size)
        else:
            candidates = samples(train, "train", config.generate.candidates, start, seed)
        scored = scores(candidates, reward)
        count = config.pairs.candidates or config.generate.candidates
        choice = {
            "objectives": asdict(config.objectives),
            "pairs": _settings(config.pairs, "source", "allow_bad") | {"candidates": count},
        }
        pairs = made("pair", scores=scored.name, **choice, seed=seed)
        further = {"start": start, "reference": config.reference} if before else {}
        further |= {"keep": config.validate.every} if config.validate.every else {}
        training = made(
            "train", pairs=pairs.name, train=_settings(config.train, *_UNSEEN), seed=seed, **further
        )
        validated, selection = {}, None
        if config.validate.every:
            for step in steps_to_validate(config):
                weights = f"{training.name}/{step}" if step else start
                drawn = samples(validation, "validation", config.validate.samples, weights)
                validated[step] = drawn, scores(drawn, reward)
            selection = made(
                "select", training=training.name, scores=[s.name for _, s in validated.values()], **choice
            )
        return Round(candidates, scored, pairs, training, validated, selection, before, seed)

    rounds: list[Round] = []
    for number in range(config.rounds):
        rounds.append(one_round(number, rounds[-1].result if rounds else None))
    last = rounds[-1]
    base = samples(heldout, "heldout", config.evaluate.samples)
    tuned = samples(heldout, "heldout", config.evaluate.samples, last.result.name)
    base_scores, tuned_scores = scores(base, reward), scores(tuned, reward)
    base_facts, tuned_facts = (scores(base, oracle), scores(tuned, oracle)) if oracle else (None, None)
    evaluation = made(
        "evaluate",
        scores=[part.name for part in (base_scores, tuned_scores, base_facts, tuned_facts) if part],
        bootstrap=config.evaluate.bootstrap,
        seed=config.seed,
    )
    report = made("report", name=config.name, training=last.training.name, evaluation=evaluation.name)
    return Artifacts(
        last.candidates, last.scores, last.pairs, last.training,
        base, base_scores, base_facts, tuned, tuned_scores, tuned_facts, evaluation, report, tuple(rounds),
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


def _settings(section: Any, *without: str) -> dict[str, Any]:
    return {name: value for name, value in asdict(section).items() if name not in without}
