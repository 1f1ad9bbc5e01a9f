"""DiffusionDPOTrainer: a transformers.Trainer over stored latents and conditioning.

Training never sees a VAE or a text encoder. What a pair is trained on at its d-th visit (timestep and noise,
shared by winner and loser) follows from the seed, the pair and d alone, so the batch's split into
micro-batches, processes and resumed runs changes nothing but rounding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler, default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments

from generators.adapters import Tuning
from generators.base import Conditioning
from generators.schedules import Schedule
from mpo.config import TrainConfig
from mpo.losses import LossOutput, denoising_error, diffusion_dpo, per_element_beta
from mpo.store import stable_seed


class Rows(Protocol):
    """Latents by row: a tensor, or a reader of shards that holds few of them in memory."""

    def __getitem__(self, row: int) -> Tensor: ...


class ConditioningRows(Protocol):
    """Conditioning by row: a `Conditioning`, or a reader of shards."""

    def rows(self, index: Sequence[int]) -> Conditioning: ...


@dataclass(frozen=True)
class PreferencePairs:
    """n pairs over stored samples. Pair i prefers `latents[winner[i]]` to `latents[loser[i]]`, both of the
    prompt whose conditioning is row `prompt[i]`."""

    latents: Rows
    conditioning: ConditioningRows
    winner: Sequence[int]
    loser: Sequence[int]
    prompt: Sequence[int]
    names: Sequence[str]  # of the pairs, all different: they seed the noise and stand in messages

    def __len__(self) -> int:
        return len(self.winner)


class PairDraws(Dataset):
    """Every draw of a training run in the order in which it is used: `length` of them, epoch after epoch.

    Each epoch is a permutation of all pairs from the seed and the epoch's number.
    """

    def __init__(self, pairs: PreferencePairs, schedule: Schedule, seed: int, length: int):
        if not len(pairs):
            raise ValueError("train: no pair to train on")
        self.pairs, self.schedule, self.seed, self.length = pairs, schedule, seed, length
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`latents` [2, ...] winner first, `noise` [...], `timestep` [], `conditioning` by name, `pair`."""
        epoch, place = divmod(index, len(self.pairs))
        pair = self._order(epoch)[place]
        winner, loser, prompt = (
            int(rows[pair]) for rows in (self.pairs.winner, self.pairs.loser, self.pairs.prompt)
        )
        latents = torch.stack([self.pairs.latents[winner], self.pairs.latents[loser]]).float()
        conditioning = self.pairs.conditioning.rows([prompt]).tensors
        generator = torch.Generator().manual_seed(stable_seed(self.seed, self.pairs.names[pair], epoch))
        return {
            "timestep": self.schedule.sample_timesteps(generator)[0],
            "noise": torch.randn(latents[0].shape, generator=generator),
            "latents": latents,
            "conditioning": {name: tensor[0] for name, tensor in conditioning.items()},
            "pair": pair,
        }

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "epoch", epoch))
        return torch.randperm(len(self.pairs), generator=generator).tolist()


@dataclass
class DiffusionDPOConfig(TrainingArguments):
    """`transformers.TrainingArguments` with the loss's settings; `max_steps` says how long to train."""

    beta: float = field(default=2000.0, metadata={"help": "Strength of the reference, mean-reduced errors."})
    sft_weight: float = field(default=0.0, metadata={"help": "Weight of the winner's own error in the loss."})
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False  # a loss that is not finite stops the run instead
    ddp_find_unused_parameters: bool | None = False
    report_to: str | list[str] | None = "none"


class DiffusionDPOTrainer(Trainer):
    """Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908) of a generator's denoiser on preference pairs.

    `tuning` is what is trained and what it is compared with. Checkpoints hold its own parameters only, the
    adapter's in diffusers' LoRA format, beside the Trainer's state; `train(resume_from_checkpoint=...)` goes
    on from one.
    """

    loss_is_scaled_for_ga = False  # a mean over the micro-batch

    def __init__(
        self,
        tuning: Tuning,
        args: DiffusionDPOConfig,
        pairs: PreferencePairs,
        callbacks: list[TrainerCallback] | None = None,
    ):
        args._n_gpu = min(args.n_gpu, 1)  # one device a process; the launcher starts more processes
        self.tuning, self.pairs = tuning, pairs
        self.schedule = tuning.generator.schedule
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        draws = PairDraws(pairs, self.schedule, args.seed, args.max_steps * batch)
        self._since_log: list[Tensor] = []
        super().__init__(
            model=tuning.policy,
            args=args,
            train_dataset=draws,
            data_collator=default_collate,
            callbacks=callbacks,
        )

    def train(self, *args, **kwargs):
        if self.is_world_process_zero():
            elements = self.pairs.latents[int(self.pairs.winner[0])].numel()
            print(
                f"beta {self.args.beta:g} on the mean of {elements:,} latent elements acts as "
                f"{per_element_beta(self.args.beta, elements):.3g} per element"
            )
        return super().train(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None
    ):
        output = self.preference_loss(model, inputs)
        self._check_finite(output, inputs["pair"])
        self._since_log.append(torch.stack([value.mean() for value in _metrics(output).values()]))
        loss = output.loss.mean()
        return (loss, _metrics(output)) if return_outputs else loss

    def preference_loss(self, model: nn.Module, inputs: dict[str, Any]) -> LossOutput:
        """The loss [B] of a batch of draws; winners and losers go through the denoiser as one batch of 2B."""
        x0 = inputs["latents"].transpose(0, 1).flatten(0, 1)
        noise, timesteps = _twice(inputs["noise"]), _twice(inputs["timestep"])
        conditioning = {name: _twice(tensor) for name, tensor in inputs["conditioning"].items()}
        x_t = self.schedule.add_noise(x0, noise, timesteps)
        target = self.schedule.target(x0, noise, timesteps)
        with self.accelerator.autocast():
            with torch.no_grad(), self.tuning.reference(model) as reference:
                ref_error = denoising_error(reference(x_t, timesteps, conditioning), target)
            error = denoising_error(model(x_t, timesteps, conditioning), target)
        return diffusion_dpo(
            *error.chunk(2), *ref_error.chunk(2), beta=self.args.beta, sft_weight=self.args.sft_weight
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._since_log:
            means = self.accelerator.reduce(torch.stack(self._since_log).mean(0), "mean")
            logs |= dict(zip(_METRICS, means.tolist(), strict=True))
            self._since_log.clear()
        super().log(logs, start_time)

    def _check_finite(self, output: LossOutput, pair: Tensor) -> None:
        finite = output.loss.detach().isfinite()
        if not finite.all():
            kept = last_checkpoint(self.args.output_dir)
            names = [self.pairs.names[i] for i in pair[~finite].tolist()]
            raise ValueError(
                f"train: the loss of step {self.state.global_step + 1} is not finite for {', '.join(names)}; "
                f"{f'checkpoint {kept} is kept' if kept else 'no checkpoint was written yet'}"
            )

    # ---- what the Trainer would do otherwise for a model that is not a PreTrainedModel ----

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # PairDraws is in the order of use already

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            if state_dict is not None:
                state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
            self.tuning.save(output_dir or self.args.output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.tuning.restore(resume_from_checkpoint)


_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "errors/winner_excess",  # e_w - ref_e_w: displacement while it stays positive
    "errors/loser_excess",
)


def _metrics(output: LossOutput) -> dict[str, Tensor]:
    values = (
        output.chosen_rewards,
        output.rejected_rewards,
        output.accuracies,
        output.margins,
        output.winner_excess,
        output.loser_excess,
    )
    return dict(zip(_METRICS, values, strict=True))


def _twice(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor])


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint of a Trainer in `folder`: its state file, written last, can be read."""
    numbered = [path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit()]
    for path in sorted(numbered, key=lambda path: int(path.name[11:]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        return path
    return None


def training_arguments(
    train: TrainConfig, output_dir: str | Path, seed: int, processes: int = 1, **changes: Any
) -> DiffusionDPOConfig:
    """The Trainer's arguments for a run's settings, on `processes` processes.

    ValueError where the batch does not divide into micro-batches and processes, or an option is unknown.
    """
    share = train.micro_batch_size * processes
    if train.batch_size % share:
        raise ValueError(
            f"train.batch_size={train.batch_size}: not a multiple of train.micro_batch_size="
            f"{train.micro_batch_size} times {processes} processes; the nearest is "
            f"{max(1, round(train.batch_size / share)) * share}"
        )
    known = {entry.name for entry in fields(DiffusionDPOConfig)}
    if unknown := sorted(set(train.options) - known):
        raise ValueError(f"train.options.{unknown[0]}: not a field of transformers.TrainingArguments")
    settings = {
        "output_dir": str(output_dir),
        "seed": seed,
        "max_steps": train.steps,
        "per_device_train_batch_size": train.micro_batch_size,
        "gradient_accumulation_steps": train.batch_size // share,
        "beta": train.beta,
        "sft_weight": train.sft_weight,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler,
        "warmup_steps": train.warmup_steps,
        "max_grad_norm": train.max_grad_norm,
        "weight_decay": train.weight_decay,
        "bf16": train.precision == "bf16",
        "fp16": train.precision == "fp16",
        "activation_checkpointing": train.gradient_checkpointing,
        "save_steps": train.save_steps,
        "save_total_limit": 2,
        "logging_steps": train.logging_steps,
        "report_to": train.report_to or "none",
        "disable_tqdm": False,
    }
    return DiffusionDPOConfig(**settings | train.options | changes)
