"""DiffusionDPOTrainer: a transformers.Trainer over stored latents and conditioning.

Training never sees a VAE or a text encoder. What a pair is trained on at its d-th visit (timestep and noise,
shared by winner and loser) follows from the seed, the pair and d alone, so the batch's split into
micro-batches, processes and resumed runs changes nothing but rounding.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import TrainerCallback, TrainerState

from generators.adapters import Tuning
from mpo.losses import LossOutput, per_element_beta, reward_offset
from mpo.preference_data import PairDraws, PreferencePairs
from mpo.preference_loss import preference_loss
from mpo.sharding import ShardingTrainer
from mpo.training_arguments import DiffusionDPOConfig
from mpo.watch import Watch, beta_now

_NAMED = 4  # pairs that a message names at most


class DiffusionDPOTrainer(ShardingTrainer):
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
        self._batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        draws = PairDraws(pairs, self.schedule, args.seed, args.max_steps * self._batch)
        self.typical_gap = _typical_gap(pairs, args.margin_offset)
        self._comparing = args.loss != "mapo"  # with a reference, by whose error beta is measured
        self._elements = pairs.latents[int(pairs.winner[0])].numel()
        self._since_log: list[list[float]] = []  # means by step, up to the next line of the log
        self._of_step: list[Tensor] = []  # means by micro-batch, up to the step's end
        self._losses_of_step: list[tuple[Tensor, Tensor]] = []  # pairs and their losses by micro-batch
        self.watch = Watch(args, self._step_means)
        super().__init__(
            model=tuning.policy,
            args=args,
            train_dataset=draws,
            data_collator=_as_drawn,
            callbacks=[self.watch, *(callbacks or ())],
        )

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        saved = _saved_state(resume_from_checkpoint)
        if saved.get("stopped"):  # by the watch, at the checkpoint's step: nothing is left to train
            self.args.max_steps = saved["global_step"]
            self.train_dataset.length = self.args.max_steps * self._batch
        if self.is_world_process_zero() and self._comparing:
            print(_beta_line(self.args, self._elements, saved.get("delta")))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None
    ):
        output = self.preference_loss(model, inputs)
        self._losses_of_step.append((inputs["pair"], output.loss.detach()))
        if self.accelerator.sync_gradients:
            self._check_finite()
        delta = (output.winner_excess - output.loser_excess).abs()
        self._of_step.append(torch.stack([*_metrics(output).values(), delta]).mean(1))
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
            ref_prediction = None
            if self._comparing:
                with self.inference(), self.tuning.reference(model) as reference:
                    ref_prediction = reference(x_t, timesteps, conditioning)
            prediction = model(x_t, timesteps, conditioning)
        offset = 0.0
        if self.typical_gap is not None:
            offset = reward_offset(inputs["gap"].to(x0), self.typical_gap, self.args.margin_offset)
        return preference_loss(
            self.args,
            prediction,
            ref_prediction,
            target,
            self.watch.beta,
            self.watch.safeguard,
            offset,
            self.schedule.num_train_timesteps,
        )

    def _step_means(self) -> tuple[float, float, float]:
        """Of the step that ends, over its whole batch: |delta|, e_w - ref_e_w, ref_e_w."""
        means = self.accelerator.reduce(torch.stack(self._of_step).mean(0), "mean").tolist()
        self._of_step.clear()
        self._losses_of_step.clear()
        *metrics, delta = means
        self._since_log.append(metrics)
        named = dict(zip(_METRICS, metrics, strict=True))
        excess = named["errors/winner_excess"]
        return delta, excess, named["errors/winner"] - excess

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._since_log:
            means = map(fmean, zip(*self._since_log, strict=True))
            named = zip(_METRICS, means, strict=True)
            logs |= {name: value for name, value in named if value == value}  # NaN: not defined for this loss
            logs |= self.watch.logs()
            if self._comparing:
                logs["beta_per_element"] = per_element_beta(self.watch.beta, self._elements)
            self._since_log.clear()
        super().log(logs, start_time)

    def _check_finite(self) -> None:
        """Before the step's last backward pass, so that a GPU is waited for once a step."""
        pairs, losses = map(torch.cat, zip(*self._losses_of_step, strict=True))
        finite = losses.isfinite()
        if not finite.all():
            raise ValueError(self._not_finite("loss", pairs[~finite].tolist()))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None):
        """Before the optimiser's step: a gradient that is not finite would ruin the weights.

        DeepSpeed's step is past by then, and it may tell no norm.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        checked = norm is not None and not self.args.fp16  # fp16's scaler skips such a step
        if checked and not torch.as_tensor(norm).isfinite():
            pairs = torch.cat([pairs for pairs, _ in self._losses_of_step])
            raise ValueError(self._not_finite("gradient", pairs.tolist()))
        return norm

    def _not_finite(self, what: str, pairs: list[int]) -> str:
        names = [self.pairs.names[pair] for pair in pairs[:_NAMED]]
        more = f" and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else ""
        kept = last_checkpoint(self.args.output_dir)
        return (
            f"train: the {what} of step {self.state.global_step + 1} is not finite for "
            f"{', '.join(names)}{more}{self.pairs.folder and f' in {self.pairs.folder}'}; "
            f"{f'checkpoint {kept} is kept' if kept else 'no checkpoint was written yet'}"
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # PairDraws is in the order of use already


_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "errors/winner_excess",  # e_w - ref_e_w: displacement while it stays positive
    "errors/loser_excess",
    "errors/winner",
    "errors/loser",
)


def _metrics(output: LossOutput) -> dict[str, Tensor]:
    values = (
        output.chosen_rewards,
        output.rejected_rewards,
        output.accuracies,
        output.margins,
        output.winner_excess,
        output.loser_excess,
        output.winner_error,
        output.loser_error,
    )
    return dict(zip(_METRICS, values, strict=True))


def _beta_line(args: DiffusionDPOConfig, elements: int, delta: float | None) -> str:
    """What beta means for this latent's size."""
    beta = beta_now(args, delta)
    name = "auto, which follows the typical |delta|, now " if args.beta == "auto" else ""
    acts = f"acts as {per_element_beta(beta, elements):.3g} per element"
    return f"beta {name}{beta:g} on the mean of {elements:,} latent elements {acts}"


def _typical_gap(pairs: PreferencePairs, margin_offset: float) -> float | None:
    """The mean gap of the pairs, those below 0 counting as 0; None where no offset is wanted."""
    if not margin_offset:
        return None
    positive = sum(max(gap, 0.0) for gap in pairs.gap or ())
    if not positive > 0:
        raise ValueError(
            f"train.margin_offset = {margin_offset}: must be 0 where the reward prefers no pair's winner, or "
            "is not known to"
        )
    return positive / len(pairs)


def _saved_state(checkpoint: str | None) -> dict[str, Any]:
    """The watch's state in a checkpoint, and its step; empty for None."""
    if checkpoint is None:
        return {}
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    watch = state.stateful_callbacks.get(Watch.__name__, {})
    return watch.get("attributes", {}) | {"global_step": state.global_step}


def _as_drawn(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


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
