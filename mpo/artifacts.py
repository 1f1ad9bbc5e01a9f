"""What a run makes, and the name in the store of each part. Imports no torch.

Every name follows from the config and its input files alone, so `mpo plan` knows before anything has run what
is there already, and runs that agree up to some stage share everything up to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import quickstart
from mpo.config import RunConfig, to_yaml
from mpo.prompts import prompt_sets
from mpo.store import Artifact, Identities, digest, write_bytes, writing
from rewards.fetch import RELEASES, fetched_folder

# Raised when a stage's code changes what it writes, so that old artifacts are not taken for new ones.
VERSIONS = {"generate": 1, "score": 1, "pair": 1, "train": 1, "evaluate": 1, "report": 1}
CONFIG = "config.yaml"

# Settings of training that change neither the adapter nor what it is called.
_UNSEEN = ("save_steps", "logging_steps", "report_to")

_COMMON = ("facts.py", "scenes.py")
_ORACLES = {  # the code that decides what an oracle says
    "quickstart": ("oracle.py", "world.py", *_COMMON),
    "quickstart_video": ("video/oracle.py", "video/world.py", *_COMMON),
}


@dataclass(frozen=True)
class Artifacts:
    """The artifacts of one run in the order in which they are made."""

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

    def items(self) -> list[tuple[str, Artifact]]:
        """(name, artifact) in order, without those that this run does not make."""
        found = [(entry.name, getattr(self, entry.name)) for entry in fields(self)]
        return [(name, artifact) for name, artifact in found if artifact is not None]


@dataclass(frozen=True)
class Run:
    """A config with its prompts and artifacts."""

    config: RunConfig
    train_prompts: list[str]
    heldout_prompts: list[str]
    artifacts: Artifacts

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
            _link(self.folder / name, made.training.folder / name, made.training.done)
        for name, artifact in (("evaluation.json", made.evaluation), ("report.html", made.report)):
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
    oracle = None
    if config.evaluate.oracle:
        sources = [Path(quickstart.__path__[0]) / name for name in _ORACLES[config.evaluate.oracle]]
        oracle = {
            "oracle": config.evaluate.oracle,
            "code": [identities.of(str(source)) for source in sources],
        }
    return Run(config, train, heldout, _name(config, train, heldout, generator, reward, oracle))


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
    train: Sequence[str],
    heldout: Sequence[str],
    generator: dict[str, Any],
    reward: dict[str, Any],
    oracle: dict[str, Any] | None,
) -> Artifacts:
    store = Path(config.store)

    def made(stage: str, **inputs: Any) -> Artifact:
        return Artifact.at(store, stage, {"version": VERSIONS[stage], **inputs})

    def samples(prompts: Sequence[str], purpose: str, count: int, adapter: str | None = None) -> Artifact:
        return made(
            "generate",
            generator=generator,
            adapter=adapter,
            prompts=digest(list(prompts)),
            seed=[config.seed, purpose],
            samples=count,
            shard_size=config.generate.shard_size,
        )

    def scores(of: Artifact, by: dict[str, Any]) -> Artifact:
        return made("score", samples=of.name, reward=by)

    candidates = samples(train, "train", config.generate.candidates)
    scored = scores(candidates, reward)
    pairs = made(
        "pair",
        scores=scored.name,
        objectives=asdict(config.objectives),
        pairs=asdict(config.pairs) | {"candidates": config.pairs.candidates or config.generate.candidates},
        seed=config.seed,
    )
    training = made("train", pairs=pairs.name, train=_settings(config.train, *_UNSEEN), seed=config.seed)
    base = samples(heldout, "heldout", config.evaluate.samples)
    tuned = samples(heldout, "heldout", config.evaluate.samples, training.name)
    base_scores, tuned_scores = scores(base, reward), scores(tuned, reward)
    base_facts, tuned_facts = (scores(base, oracle), scores(tuned, oracle)) if oracle else (None, None)
    evaluation = made(
        "evaluate",
        scores=[part.name for part in (base_scores, tuned_scores, base_facts, tuned_facts) if part],
        bootstrap=config.evaluate.bootstrap,
        seed=config.seed,
    )
    report = made("report", name=config.name, training=training.name, evaluation=evaluation.name)
    return Artifacts(
        candidates, scored, pairs, training,
        base, base_scores, base_facts, tuned, tuned_scores, tuned_facts, evaluation, report,
    )  # fmt: skip


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


def _settings(section: Any, *without: str) -> dict[str, Any]:
    return {name: value for name, value in asdict(section).items() if name not in without}
