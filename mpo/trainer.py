"""DiffusionDPOTrainer: a transformers.Trainer over stored latents and conditioning.

Training never sees a VAE or a text encoder. What a pair is trained on at its d-th visit (timestep and noise,
shared by winner and loser) follows from the seed, the pair and d alone, so the batch's split into
micro-batches, processes and resumed runs changes nothing but rounding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler, default_collate
from transformers import Trainer, TrainerCallback

from generators.adapters import Tuning
from mpo.losses import LossOutput, denoising_error, diffusion_dpo, per_element_beta
from mpo.preference_data import PairDraws, PreferencePairs
from mpo.training_arguments import DiffusionDPOConfig


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
