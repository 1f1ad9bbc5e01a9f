"""The train stage, and the choice among its checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generators.adapters import FullTuning, LoraTuning, Tuning, load_denoiser
from generators.build import build_generator
from mpo.artifacts import Round, kept_weights, reached, weights
from mpo.config import RunConfig
from mpo.out_of_memory import told_where, training
from mpo.samples import preference_pairs
from mpo.scores import read_scores
from mpo.selection import best_step, validation_rows
from mpo.store import disk_errors, write_bytes
from mpo.trainer import DiffusionDPOTrainer, last_checkpoint
from mpo.training_arguments import training_arguments
from mpo.watch import KeepWeights

if TYPE_CHECKING:
    from mpo.pipeline import Session


def train(session: Session, made: Round) -> None:
    """Train on the pairs' stored latents and conditioning; goes on from the last whole checkpoint."""
    config = session.run.config

    def work() -> Mapping[str, Any]:
        session.models.release()
        with told_where(*training(config)):
            tuning = _tuning(config, made)
        folder = made.training.folder
        arguments = training_arguments(
            config.train,
            folder / "checkpoints",
            made.seed,
            session.process.num_processes,
            use_cpu=session.process.device.type == "cpu",
            run_name=config.name,
        )
        keep = KeepWeights(set(made.validated) - {0}, partial(kept_weights, made.training))
        pairs = preference_pairs(made.candidates, made.pairs)
        followed = session.tracker and made is session.run.artifacts.rounds[-1]
        callbacks = [keep, *([session.tracker.callback()] if followed else [])]
        trainer = DiffusionDPOTrainer(tuning, arguments, pairs, callbacks)
        keep.save = lambda path: trainer.save_model(path, _internal_call=True)
        begun = last_checkpoint(arguments.output_dir)
        with disk_errors(folder), told_where(*training(config)):
            trainer.train(resume_from_checkpoint=begun and str(begun))
            trainer.export(folder / ("adapter" if config.train.mode == "lora" else "pipeline"))
        if session.process.is_main_process:
            _write_rows(folder / "log.jsonl", trainer.state.log_history)
        return {"steps": trainer.state.global_step, "events": trainer.watch.events}

    session.make(made.training, work)


def _tuning(config: RunConfig, made: Round) -> Tuning:
    """What the round trains, started from what the round before it made, and what that is compared with."""
    train, start = config.train, made.before and weights(made.before)
    previous = config.reference == "previous"
    generator = build_generator(config.generator, denoiser_only=True)
    if train.mode == "lora":
        lora = train.lora
        return LoraTuning(
            generator, lora.rank, lora.alpha, lora.dropout, lora.targets, made.seed, start, previous
        )
    return FullTuning(generator, start and start / generator.denoiser, previous, needed=train.loss != "mapo")


def select(session: Session, made: Round) -> None:
    """Take the best of the validated checkpoints: validation.jsonl, and its adapter or pipeline."""
    config, training = session.run.config, made.training

    def work() -> Mapping[str, Any] | None:
        if not session.process.is_main_process:
            return None
        kept = reached(made)
        levels = {step: read_scores(made.validated[planned][1]).levels for step, planned in kept.items()}
        rows = validation_rows(levels, config.objectives, config.pairs.tolerance)
        step = best_step(rows)
        with disk_errors(made.selection.folder):
            _take(config, kept_weights(training, kept[step]), made.selection.folder)
        _write_rows(made.selection.folder / "validation.jsonl", rows)
        return {"step": step}

    session.make(made.selection, work)


def _take(config: RunConfig, kept: Path, folder: Path) -> None:
    """Write the weights of one step as training exports those of its last."""
    if config.train.mode == "lora":
        shutil.copytree(kept, folder / "adapter", dirs_exist_ok=True)
        return
    generator = build_generator(config.generator, denoiser_only=True)
    generator.model.float()
    load_denoiser(generator, kept)
    generator.save(folder / "pipeline")


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
