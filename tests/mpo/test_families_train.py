"""Every family through the trainer, on a tiny random pipeline of its real class."""

import pytest
import torch
from tiny_pipelines import FAMILIES, generator_config

from generators.adapters import LoraTuning
from generators.build import build_generator
from mpo.config import TrainConfig
from mpo.preference_data import PreferencePairs
from mpo.trainer import DiffusionDPOTrainer
from mpo.training_arguments import training_arguments


@pytest.mark.parametrize("kind", FAMILIES)
def test_dpo_starts_at_log_2_and_ten_steps_lower_the_winners_relative_error(tiny_pipeline, tmp_path, kind):
    whole = build_generator(generator_config(kind, tiny_pipeline(kind)))
    conditioning = whole.encode_prompts(["a red circle"])
    latents = whole.sample(conditioning.rows([0, 0]), [1, 2]).latents
    generator = build_generator(generator_config(kind, tiny_pipeline(kind)), denoiser_only=True)
    pairs = PreferencePairs(latents / latents.std(), conditioning, [0], [1], [0], ["0>1"])
    train = TrainConfig(
        beta=2.0, learning_rate=3e-3, steps=10, batch_size=4, micro_batch_size=4, sft_weight=5.0
    )
    arguments = training_arguments(
        train, tmp_path, seed=0, use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    run = DiffusionDPOTrainer(LoraTuning(generator, rank=4), arguments, pairs)
    batch = next(iter(run.get_train_dataloader()))
    run.args.sft_weight = 0.0
    before = run.preference_loss(run.model, batch)
    assert torch.equal(before.loss, torch.full((4,), 2.0).log())
    before.loss.mean().backward()
    assert max(p.grad.abs().max() for p in run.model.parameters() if p.requires_grad) > 1e-7
    run.model.zero_grad()
    run.args.sft_weight = train.sft_weight
    run.train()
    with torch.no_grad():
        after = run.preference_loss(run.model, batch)
    assert after.winner_excess.mean() < 0
    assert after.margins.mean() > 0
