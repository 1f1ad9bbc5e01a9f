"""wandb, where `tracking.wandb.project` is set: what a run logs there, and how a restarted one goes on.

A run's folder keeps `wandb.json`: the id of its wandb run, the last optimiser step and the parts logged. A
run that is killed and started again, or that takes its training from the store, goes on with the same wandb
run and logs what is not there yet. Offline, wandb may lose the last seconds before a kill, so what a start
has logged counts only once it has ended; after a kill points may be there twice, at the same step.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import wandb
from transformers import TrainerCallback
from transformers.integrations.integration_utils import rewrite_logs

from mpo.artifacts import Run
from mpo.embed import CLIPS
from mpo.gallery import Sample, spread
from mpo.progress import step_means, validated
from mpo.report import heldout, read_log
from mpo.store import write_json

LEDGER = "wandb.json"
STEP = "train/global_step"  # the axis of all curves, named as transformers' own integration does
ROWS = 32  # of the table of samples


@contextmanager
def tracking(run: Run) -> Iterator[Tracker]:
    """The tracker of a run's main process. Raises ValueError where wandb refuses or cannot be reached."""
    settings = run.config.tracking.wandb
    ledger = _ledger(run)
    try:
        logged = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            id=ledger["id"],
            resume="allow"
            if settings.mode == "online"
            else None,  # offline, the id alone decides at `wandb sync`
            name=run.config.name,
            dir=run.folder,
            config=asdict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        hint = "tracking.wandb.mode=offline needs no account"
        raise ValueError(f"tracking.wandb.project = {settings.project}: {reason} ({hint})") from error
    ended = 1
    try:
        yield Tracker(run, logged, ledger)
        ended = 0
    finally:
        logged.finish(exit_code=ended)
        write_json(run.folder / LEDGER, ledger)


class Tracker:
    """Logs a run's parts to its wandb run, each of them once."""

    def __init__(self, run: Run, logged: Any, ledger: dict[str, Any]) -> None:
        self.run, self.logged, self._ledger = run, logged, ledger
        logged.define_metric(STEP)
        logged.define_metric("*", step_metric=STEP, step_sync=True)

    def callback(self) -> TrainerCallback:
        """Logs what the Trainer logs, while it trains."""
        return _Live(self)

    def curves(self, row: Mapping[str, Any]) -> None:
        """A row of the Trainer's log, unless its step is there already."""
        if row["step"] <= self._ledger["step"] or not any(key in row for key in ("loss", "grad_norm")):
            return
        values = {key: value for key, value in row.items() if key != "step"}
        self.logged.log({**rewrite_logs(values), STEP: row["step"]})
        self._note(step=row["step"])

    def after(self, stage: str) -> None:
        """Log what a finished stage has made."""
        parts = {"pair": self._yield, "train": self._training, "evaluate": self._evaluation}
        if stage == "train":  # all of it, where this run took its training from another
            for row in read_log(self.run.artifacts.training):
                self.curves(row)
        if stage in parts:
            self._once(stage, parts[stage])

    def _yield(self) -> None:
        pairs = self.run.artifacts.pairs
        content = json.loads((pairs.folder / "yield.json").read_text())
        columns = [key for key, value in content["rows"][0].items() if not isinstance(value, dict)]
        table = wandb.Table(columns=columns, data=[[row[key] for key in columns] for row in content["rows"]])
        self.logged.log({"yield": table})
        self.logged.summary.update({f"pairs/{name}": value for name, value in pairs.facts().items()})

    def _training(self) -> None:
        training = self.run.artifacts.training
        kind = "adapter" if self.run.config.train.mode == "lora" else "pipeline"
        for name, points in step_means(validated(self.run)).items():
            for step, mean in points:
                self.logged.log({f"validation/{name}": mean, STEP: step})
        name = re.sub(r"[^a-zA-Z0-9_.-]+", "-", f"{self.run.config.name}-{kind}")  # all that wandb allows
        artifact = wandb.Artifact(name[:128], type="model", metadata=training.facts())
        artifact.add_dir(str(self.run.artifacts.result.folder / kind), policy="immutable")
        self.logged.log_artifact(artifact)

    def _evaluation(self) -> None:
        made = self.run.artifacts
        content = json.loads((made.evaluation.folder / "evaluation.json").read_text())
        for reward, found in content.items():
            for name, row in {"total": found["total"], **found["dimensions"]}.items():
                values = {key: row[key] for key in ("base", "tuned", "delta", "win", "tie", "loss")}
                values |= {"low": row["ci95"][0], "high": row["ci95"][1]}
                self.logged.summary.update(
                    {f"evaluation/{reward}/{name}/{key}": value for key, value in values.items()}
                )
        self.logged.log({"samples": self._samples()})

    def _samples(self) -> wandb.Table:
        """Held-out prompts, both pictures or clips, and the change of every dimension by every reward."""
        gallery = heldout(self.run)
        names = [(reward, name) for reward, part in gallery.rewards.items() for name in part["dimensions"]]
        table = wandb.Table(columns=["prompt", *gallery.steps, "change", *map("/".join, names)])
        for rank in spread(len(gallery.cards), ROWS):
            card = gallery.cards[rank]
            before, after = card.samples
            changes = {
                (reward, name): b - a
                for reward in before.dimensions.keys() & after.dimensions.keys()
                for name, a, b in zip(
                    gallery.rewards[reward]["dimensions"],
                    before.dimensions[reward],
                    after.dimensions[reward],
                    strict=True,
                )
            }
            table.add_data(
                card.prompt,
                _medium(before),
                _medium(after),
                card.change,
                *(changes.get(key) for key in names),
            )
        return table

    def _once(self, part: str, log: Callable[[], None]) -> None:
        if part not in self._ledger["logged"]:
            log()
            self._note(logged=[*self._ledger["logged"], part])

    def _note(self, **changes: Any) -> None:
        self._ledger.update(changes)
        if self.run.config.tracking.wandb.mode == "online":
            write_json(self.run.folder / LEDGER, self._ledger)


class _Live(TrainerCallback):
    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        for row in state.log_history:  # of the checkpoint that training goes on from
            self.tracker.curves(row)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.tracker.curves({**logs, "step": state.global_step})


def _ledger(run: Run) -> dict[str, Any]:
    """What wandb knows of this run so far; begun anew where the folder held another training."""
    path, training = run.folder / LEDGER, run.artifacts.training.name
    if path.is_file():
        found = json.loads(path.read_text())
        if found["training"] == training:
            return found
    run.folder.mkdir(parents=True, exist_ok=True)
    begun = {"id": secrets.token_hex(4), "training": training, "step": 0, "logged": []}
    write_json(path, begun)
    return begun


def _medium(sample: Sample) -> Any:
    if sample.media.suffix in CLIPS:
        return wandb.Video(str(sample.media), format=sample.media.suffix[1:])
    return wandb.Image(str(sample.media))
