"""Teaches a judge from annotations: supervised fine-tuning with trl, on packed sequences.

VisionReward (arXiv 2412.21059, section 3) tunes its judge on as many yes as no of every question. An item's
questions, in random order, share one sequence (`packed_batch`), so that its picture is encoded once a step.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from rewards.annotations import Annotations, balance, one_sided, read_annotations, split
from rewards.build import load_judge
from rewards.choice import check_choice
from rewards.finetune_settings import JudgeTraining
from rewards.judge_metrics import JudgeReport, measure_answers
from rewards.judges.base import Failure
from rewards.judges.loading import DTYPES, pick_device, quiet
from rewards.judges.transformers_vlm import TransformersJudge
from rewards.media import load_media
from rewards.packed_batch import Sharer, answer_tokens, check_packed, pack_answers, stack

logger = logging.getLogger(__name__)
BEST = "balanced_accuracy"


def train_judge(settings: JudgeTraining) -> JudgeReport:
    """Tune the judge, keep the best by balanced accuracy on the validation items, and write its folder.

    Beside the model, `out` gets `training.yaml` and `evaluation.json`, the report before and after.
    """
    out = Path(settings.out)
    if out.exists():
        raise FileExistsError(f"{out}: exists already; choose another out=")
    train, validation = _read_sides(settings)
    arguments = _arguments(settings)
    judge = load_judge(
        settings.judge,
        template=settings.template,
        dtype=settings.dtype,
        device=settings.device,
        batch_size=settings.micro_batch_size,
        frames=settings.frames,
    )
    first = train.items[0]
    asked = [train.asked(index, first) for index in first.questions[: settings.questions_per_sequence]]
    check_packed(judge, load_media(first.item, judge.frames), asked)
    trainer = _trainer(settings, arguments, judge, train, validation)
    before = trainer.report()
    with quiet():
        trainer.train(resume_from_checkpoint=_last_checkpoint(settings, trainer.args.should_save))
    after = trainer.report()
    if after.overall.said_yes in (0, 1):
        word = "yes" if after.overall.said_yes else "no"
        logger.warning(
            "%s answers %s to everything: lower the learning rate, or balance the answers", out, word
        )
    if settings.mode == "lora":
        trainer.model.merge_and_unload()
    if trainer.args.should_save:
        with quiet():
            _write(out, judge, settings, {"before": before.to_dict(), "after": after.to_dict()})
        shutil.rmtree(trainer.args.output_dir)
    return after


def _read_sides(settings: JudgeTraining) -> tuple[Annotations, Annotations]:
    """Annotations to train on and to validate on."""
    options = settings.questions, settings.media, settings.allow_missing
    train = read_annotations(settings.data, *options)
    if settings.validation is None:
        train, validation = split(train, settings.validation_share, settings.seed)
    else:
        validation = read_annotations(settings.validation, *options)
    lost = one_sided(train)
    if lost and settings.balanced:
        named = "; ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        logger.warning("%s: only one kind of answer, left out: %s", train.name, named)
    return train, validation


def draw_sequences(annotations: Annotations, settings: JudgeTraining) -> Dataset:
    """All sequences of all epochs in training order: item, indices of its questions, answers.

    Each epoch draws its own balanced questions, orders them and the items, all from the seed. What is
    left after the last whole batch is dropped, so that any number of processes takes the same steps.
    """
    rows: list[dict[str, Any]] = []
    for epoch in range(settings.epochs):
        rng = np.random.default_rng([settings.seed, epoch])
        drawn = balance(annotations, rng) if settings.balanced else annotations
        index = {(item.item, item.prompt): row for row, item in enumerate(annotations.items)}
        epoch_rows = []
        for item in drawn.items:
            order = rng.permutation(len(item.questions))
            for start in range(0, len(order), settings.questions_per_sequence):
                part = order[start : start + settings.questions_per_sequence]
                epoch_rows.append(
                    {
                        "item": index[item.item, item.prompt],
                        "questions": [item.questions[place] for place in part],
                        "answers": [int(item.answers[place]) for place in part],
                    }
                )
        rows += [epoch_rows[place] for place in rng.permutation(len(epoch_rows))]
    whole = len(rows) // settings.batch_size * settings.batch_size
    if not whole:
        raise ValueError(
            f"batch_size = {settings.batch_size}: {annotations.name} gives {len(rows)} sequences only"
        )
    return Dataset.from_list(rows[:whole])


class PackedCollator:
    """Reads the media of a batch and packs their questions; rows are those of `draw_sequences`.

    keep: bytes of memory for media as the model takes them, so that later epochs need not read them again.
    """

    def __init__(self, judge, annotations: Annotations, keep: float = 0.0):
        self.judge = judge
        self.annotations = annotations
        self.share = Sharer(judge, keep)
        self.tokens = answer_tokens(judge)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        items = []
        for row in rows:
            item = self.annotations.items[row["item"]]
            asked = [self.annotations.asked(index, item) for index in row["questions"]]
            shared = self.share(item.item, partial(load_media, item.item, self.judge.frames), asked)
            items.append(pack_answers(shared, [self.tokens[answer] for answer in row["answers"]]))
        return stack(items, self.judge.processor.tokenizer.pad_token_id or 0, self.judge.model.dtype)


class JudgeTrainer(SFTTrainer):
    """SFTTrainer that validates by asking: balanced accuracy over questions, as the judge will be used."""

    def __init__(self, judge, validation: Annotations, frozen: Sequence[nn.Module], **options):
        super().__init__(model=judge.model, **options)
        self.judge = judge
        self.validation = validation
        self.frozen = frozen

    def compute_loss(self, *args, **kwargs):
        for module in self.frozen:
            module.eval()  # or running means of a batch normalisation would move
        loss = super().compute_loss(*args, **kwargs)
        for metrics in self._metrics.values():
            metrics.pop("num_tokens", None)  # counted from the mask, which is no mask of tokens here
        return loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Logs and returns the accuracies on the validation items."""
        report = self.report()
        found = {BEST: report.balanced, "accuracy": report.overall.accuracy}
        found |= {"calibration_error": report.overall.calibration, "said_yes": report.overall.said_yes}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _load_best_model(self) -> None:
        if self._plain:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Reads weights back under the names that `save_pretrained` gave them, which Trainer leaves
        unread."""
        if not self._plain:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(self.judge.model).from_pretrained(resume_from_checkpoint, dtype=self.judge.model.dtype)
        self.judge.model.load_state_dict(saved.state_dict())

    @property
    def _plain(self) -> bool:
        """All weights are trained, and lie whole in this process."""
        return not (isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def report(self) -> JudgeReport:
        """Accuracy by question on the validation items, which the processes share."""
        training = self.judge.model.training
        self.judge.model.eval()
        mine = self.validation.items[self.args.process_index :: self.args.world_size]
        found = gather_object(answer_all(self.judge, self.validation, mine))
        self.judge.model.train(training)
        answered = [entry for entry in found if entry is not None]
        columns = [np.concatenate(column) for column in zip(*answered, strict=True)] or [[], [], []]
        return measure_answers(self.validation.questions, *columns, missing=len(found) - len(answered))


def answer_all(judge, annotations: Annotations, items) -> list[tuple[np.ndarray, ...] | None]:
    """Per item its question indices, P(yes) and people's answers; None where the judge could not answer."""
    found: list[tuple[np.ndarray, ...] | None] = []
    for start in range(0, len(items), judge.batch_size):
        part = items[start : start + judge.batch_size]
        media = [load_media(item.item, judge.frames) for item in part]
        asked = [[annotations.asked(index, item) for index in item.questions] for item in part]
        for item, result in zip(part, judge.answer(media, asked), strict=True):
            if isinstance(result, Failure):
                logger.warning("%s", result.reason)
                found.append(None)
            else:
                truth = np.array(item.answers, dtype=bool)
                found.append((np.array(item.questions), result.p_yes.numpy(), truth))
    return found


def _trainer(
    settings: JudgeTraining, arguments: SFTConfig, judge, train: Annotations, validation: Annotations
) -> JudgeTrainer:
    rows = draw_sequences(train, settings)
    judge.model.requires_grad_(settings.mode == "full")
    frozen = _frozen(judge.model, settings.frozen)
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets or "all-linear",
        exclude_modules=rf"(.*\.)?({'|'.join(map(re.escape, settings.frozen))})(\..*)?" if frozen else None,
    )
    processor = judge.processor if isinstance(judge, TransformersJudge) else judge.processor.tokenizer
    return JudgeTrainer(
        judge,
        validation,
        frozen,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows.select(range(1)),  # stands for the validation items, which `evaluate` asks about
        data_collator=PackedCollator(judge, train, keep=settings.keep_gib * 2**30),
        processing_class=processor,
        peft_config=lora if settings.mode == "lora" else None,
        callbacks=[EarlyStoppingCallback(settings.patience)],
    )


def _frozen(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Freeze the modules of these names, and return them; ValueError for a name that no module has."""
    modules = dict(model.named_modules())
    found = []
    for name in names:
        matches = [module for path, module in modules.items() if f".{path}".endswith(f".{name}")]
        if not matches:
            parts = {part for path in modules for part in path.split(".") if not part.isdigit()}
            check_choice("frozen: module", name, sorted(parts))
        found += matches
    return [module.requires_grad_(False) for module in found]


def _arguments(settings: JudgeTraining) -> SFTConfig:
    values = {
        "output_dir": _checkpoints(settings),
        "per_device_train_batch_size": settings.micro_batch_size,
        "num_train_epochs": 1,  # `draw_sequences` holds all epochs
        "train_sampling_strategy": "sequential",
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.precision == "bf16",
        "fp16": settings.precision == "fp16",
        "activation_checkpointing": settings.gradient_checkpointing,
        "eval_strategy": "steps",
        "eval_steps": settings.eval_steps,
        "save_strategy": "steps",
        "save_steps": settings.eval_steps,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": BEST,
        "greater_is_better": True,
        "remove_unused_columns": False,
        "use_cache": True,  # what the saved model's config says; trl turns the cache off in training
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "use_cpu": pick_device(settings.device).type == "cpu",
        "report_to": [],
        "seed": settings.seed,
    }
    for name in settings.options:
        check_choice("options: field of trl.SFTConfig", name, list(SFTConfig.__dataclass_fields__))
    arguments = SFTConfig(**values | settings.options)
    per_pass = settings.micro_batch_size * arguments.world_size
    if settings.batch_size % per_pass:
        raise ValueError(
            f"batch_size = {settings.batch_size}: must be a multiple of {per_pass}, "
            "micro_batch_size times processes"
        )
    arguments.gradient_accumulation_steps = settings.batch_size // per_pass
    return arguments


def _last_checkpoint(settings: JudgeTraining, writes: bool) -> str | None:
    """The last checkpoint of a training that was cut short; ValueError where its settings were others."""
    folder = Path(_checkpoints(settings))
    note, content = folder / "training.yaml", OmegaConf.to_yaml(OmegaConf.structured(settings))
    if note.is_file() and note.read_text() != content:
        raise ValueError(f"{folder}: begun with other settings; delete it, or choose another out=")
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(content)
    return get_last_checkpoint(str(folder))


def _checkpoints(settings: JudgeTraining) -> str:
    return f"{settings.out}.training"


def _write(out: Path, judge, settings: JudgeTraining, evaluation: dict) -> None:
    """The judge's folder, all at once."""
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    judge.model.to(DTYPES[settings.save_dtype or settings.dtype]).save_pretrained(part)
    processor = judge.processor if isinstance(judge, TransformersJudge) else judge.processor.tokenizer
    processor.save_pretrained(part)
    (part / "evaluation.json").write_text(json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n")
    OmegaConf.save(OmegaConf.structured(settings), part / "training.yaml")
    part.rename(out)
