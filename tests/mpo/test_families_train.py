"""Every family through the trainer, on a tiny random pipeline of its real class."""

import math
from functools import cache

import pytest
import torch
from tiny_pipelines import FAMILIES, generator_config

from generators.adapters import FullTuning, LoraTuning
from generators.build import build_generator
from mpo.config import TrainConfig
from mpo.preference_data import PreferencePairs
from mpo.trainer import DiffusionDPOTrainer
from mpo.training_arguments import training_arguments

# DPO raises the margin; in one of a pair's two orders at least it also lowers the winner's own error. By g
# and h, the gradients of both errors, a small step changes that by g.h - |g|^2, or in the other order by
# g.h - |h|^2, and these sum to -|g - h|^2. The sample that wins here is one for which it does.
SECOND = ("stable_diffusion_v", "stable_diffusion_3", "cogvideox_rotary", "wan")
WINNER = {kind: int(kind in SECOND) for kind in FAMILIES}


@pytest.fixture(scope="module")
def samples(tiny_pipeline):
    """Latents of two of a family's own samples of a prompt, and its conditioning; sampled once a family."""

    @cache
    def of(kind):
        whole = build_generator(generator_config(kind, tiny_pipeline(kind)))
        conditioning = whole.encode_prompts(["a red circle"])
        latents = whole.sample(conditioning.rows([0, 0]), [1, 2]).latents
        return latents / latents.std(), conditioning

    return of


@pytest.fixture
def trainer(tiny_pipeline, samples, tmp_path):
    """A trainer on the one pair of a family's two samples."""

    def build(kind, mode="lora", dtype="float32", **changes):
        generator = build_generator(
            generator_config(kind, tiny_pipeline(kind), dtype=dtype), denoiser_only=True
        )
        tuning = LoraTuning(generator, rank=4) if mode == "lora" else FullTuning(generator)
        won = WINNER[kind]
        pairs = PreferencePairs(*samples(kind), [won], [1 - won], [0], ["0>1"])
        settings = {
            "beta": 20.0,
            "learning_rate": 1e-3,
            "batch_size": 4,
            "micro_batch_size": 4,
            "logging_steps": 1,
        }
        arguments = training_arguments(
            TrainConfig(**settings | changes),
            tmp_path,
            0,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        return DiffusionDPOTrainer(tuning, arguments, pairs)

    return build


@pytest.mark.parametrize("kind", FAMILIES)
def test_dpo_starts_at_log_2_and_ten_steps_of_it_lower_the_winners_relative_error(trainer, kind):
    run = trainer(kind, steps=10)
    batch = next(iter(run.get_train_dataloader()))
    before = run.preference_loss(run.model, batch)
    assert torch.equal(before.loss, torch.full((4,), 2.0).log())
    before.loss.mean().backward()
    assert max(p.grad.abs().max() for p in run.model.parameters() if p.requires_grad) > 1e-7
    run.model.zero_grad()
    run.train()
    with torch.no_grad():
        after = run.preference_loss(run.model, batch)
    assert after.winner_excess.mean() < 0
    assert after.margins.mean() > 0


@pytest.mark.parametrize(
    ("kind", "mode"), [("stable_diffusion", "lora"), ("flux", "lora"), ("cogvideox", "lora"), ("wan", "full")]
)
def test_a_generator_in_bfloat16_starts_at_log_2_and_trains_float32(trainer, kind, mode):
    run = trainer(kind, mode, "bfloat16", steps=2, precision="bf16")
    before = [parameter.detach().clone() for parameter in run.tuning.policy.trained]
    run.train()
    first, second, _ = run.state.log_history
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7) and first["rewards/margins"] == 0
    assert first["grad_norm"] > 1e-4 and second["rewards/margins"] != 0
    after = run.tuning.policy.trained
    assert all(parameter.dtype == torch.float32 for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    frozen = {p.dtype for p in run.model.parameters() if not p.requires_grad}
    assert frozen == ({torch.bfloat16} if mode == "lora" else set())


@pytest.mark.parametrize(
    ("kind", "mode", "blocks"),
    [
        ("flux", "lora", "transformer_blocks"),
        ("cogvideox", "lora", "transformer_blocks"),
        ("wan", "full", "blocks"),
    ],
)
def test_activation_checkpointing_runs_blocks_again_and_changes_no_gradient(trainer, kind, mode, blocks):
    gradients, passes = [], []
    for checkpointing in (False, True):
        run = trainer(kind, mode, steps=1, gradient_checkpointing=checkpointing, max_grad_norm=0.0)
        seen, counted = {}, []
        for name, parameter in run.tuning.generator.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient, name=name, seen=seen: seen.update({name: gradient}))
        block = getattr(run.tuning.generator.model, blocks)[0]
        block.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        run.train()
        gradients.append(seen)
        passes.append(len(counted))
    plain, saving = gradients
    assert passes[1] == passes[0] + 1  # that of the policy, in the backward pass
    assert plain.keys() == saving.keys() and max(gradient.abs().max() for gradient in plain.values()) > 1e-5
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, atol=1e-8, rtol=1e-4)
