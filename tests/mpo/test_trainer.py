import json
import math
import os
from dataclasses import replace

import pytest
import torch
from tiny_pipelines import generator_config
from training import KIND, Stop, assert_equal, losses, trained, trainer
from transformers import Trainer

from generators.adapters import load_adapter
from generators.build import build_generator
from mpo.preference_data import PairDraws, PreferencePairs
from mpo.trainer import last_checkpoint


def test_draws_depend_on_seed_pair_and_visit_alone(pairs, tiny_pipeline):
    schedule = build_generator(generator_config(KIND, tiny_pipeline(KIND)), denoiser_only=True).schedule
    draws = PairDraws(pairs, schedule, seed=5, length=18)
    epochs = [draws.__getitems__(range(start, start + 6)) for start in (0, 6, 12)]
    for epoch in epochs:
        assert sorted(epoch["pair"].tolist()) == list(range(6))
    assert epochs[0]["pair"].tolist() != epochs[1]["pair"].tolist()
    places = [epoch["pair"].tolist().index(2) for epoch in epochs]
    noise = [epoch["noise"][place] for epoch, place in zip(epochs, places, strict=True)]
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(epochs[0]["latents"][places[0]], pairs.latents[[2, 3]])
    # The same visit, asked for in another batch, in a run of another length, or with the other pairs gone.
    other = PairDraws(pairs, schedule, 5, 6).__getitems__([4, 1])
    assert torch.equal(other["noise"], epochs[0]["noise"][[4, 1]])
    fewer = PreferencePairs(pairs.latents, pairs.conditioning, [2], [3], [0], pairs.names[2:3])
    alone = PairDraws(fewer, schedule, 5, 3).__getitems__(range(3))
    for visit, place in enumerate(places):
        assert torch.equal(alone["noise"][visit], noise[visit])
        assert alone["timestep"][visit] == epochs[visit]["timestep"][place]
    assert not torch.equal(PairDraws(fewer, schedule, 6, 1).__getitems__([0])["noise"][0], noise[0])


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_first_loss_is_log_2_and_its_gradient_is_not_zero(tiny_pipeline, pairs, tmp_path, mode):
    run = trainer(tiny_pipeline, pairs, tmp_path, mode, steps=1, save_steps=10)
    run.train()
    first = run.state.log_history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/margins"] == first["rewards/chosen"] == first["errors/winner_excess"] == 0
    assert first["grad_norm"] > 1e-3
    batch = next(iter(run.get_train_dataloader()))
    before = trainer(tiny_pipeline, pairs, tmp_path, mode)
    output = before.preference_loss(before.model, batch)
    assert torch.equal(output.loss, torch.full((4,), 2.0).log())


def test_winner_and_loser_share_timestep_and_noise(tiny_pipeline, pairs, tmp_path):
    """With the loser equal to the winner every error cancels, whatever the adapter does."""
    same = PreferencePairs(
        pairs.latents, pairs.conditioning, pairs.winner, pairs.winner, pairs.prompt, pairs.names
    )
    run = trainer(tiny_pipeline, same, tmp_path)
    for parameter in trained(run):
        torch.nn.init.normal_(run.tuning.generator.model.get_parameter(parameter).data, std=0.2)
    output = run.preference_loss(run.model, next(iter(run.get_train_dataloader())))
    assert output.winner_excess.abs().min() > 1e-5
    assert torch.equal(output.winner_excess, output.loser_excess)


def test_errors_are_those_of_the_definition(tiny_pipeline, pairs, tmp_path):
    """e = mean((prediction - noise)^2) at x_t = sqrt(abar) x0 + sqrt(1 - abar) noise, one row at a time."""
    run = trainer(tiny_pipeline, pairs, tmp_path)
    reference = build_generator(generator_config(KIND, tiny_pipeline(KIND)))
    for parameter in trained(run):
        torch.nn.init.normal_(run.tuning.generator.model.get_parameter(parameter).data, std=0.2)
    batch = run.train_dataset.__getitems__([0, 1])
    chosen = run.preference_loss(run.model, batch).chosen_rewards[0]
    timestep, noise = batch["timestep"][:1], batch["noise"][0]
    abar = reference.pipe.scheduler.alphas_cumprod[timestep]
    x_t = abar.sqrt() * batch["latents"][0, 0] + (1 - abar).sqrt() * noise
    conditioning = pairs.conditioning.rows([pairs.prompt[batch["pair"][0]]])
    with torch.no_grad():
        errors = [
            (g.predict(x_t[None], timestep, conditioning)[0] - noise).square().mean()
            for g in (run.tuning.generator, reference)
        ]
    assert chosen == pytest.approx(-100 * (errors[0] - errors[1]).item(), rel=1e-3)


def test_training_prefers_the_winner(tiny_pipeline, pairs, tmp_path):
    """Winners alike, losers their opposite: there is something to learn, and the watch sees it."""
    pattern = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    signed = pattern * torch.tensor([1, 1, 1, -1, 1, 1, 1, -1]).view(-1, 1, 1, 1)
    easy = PreferencePairs(signed, pairs.conditioning, [0, 1, 4, 5], [3, 7, 3, 7], [0, 0, 1, 1], list("abcd"))
    run = trainer(tiny_pipeline, easy, tmp_path, "full", steps=16, save_steps=100, logging_steps=4)
    run.train()
    first, *_, last, _ = run.state.log_history
    assert last["loss"] < first["loss"] < math.log(2)
    assert last["rewards/margins"] > first["rewards/margins"] and last["rewards/accuracies"] > 0.9
    assert last["rewards/margins"] == pytest.approx(
        last["rewards/chosen"] - last["rewards/rejected"], rel=1e-4
    )
    # reward = -beta/2 (e - ref_e), beta 200
    assert last["rewards/chosen"] == pytest.approx(-100 * last["errors/winner_excess"], rel=1e-4)
    assert last["rewards/rejected"] == pytest.approx(-100 * last["errors/loser_excess"], rel=1e-4)


def test_accumulation_changes_nothing_but_rounding(tiny_pipeline, pairs, tmp_path):
    whole = trainer(tiny_pipeline, pairs, tmp_path / "4x1")
    whole.train()
    split = trainer(tiny_pipeline, pairs, tmp_path / "1x4", micro_batch_size=1)
    split.train()
    assert losses(split) == pytest.approx(losses(whole), abs=1e-5)
    for name, parameter in trained(whole).items():
        torch.testing.assert_close(trained(split)[name], parameter, atol=2e-5, rtol=0)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_resumed_run_equals_a_straight_one(tiny_pipeline, pairs, tmp_path, mode):
    dropout = 0.2 if mode == "lora" else 0.0  # so that the Trainer's random state matters too
    straight = trainer(tiny_pipeline, pairs, tmp_path / "straight", mode, dropout=dropout)
    straight.train()
    killed = trainer(tiny_pipeline, pairs, tmp_path / "killed", mode, [Stop(5)], dropout)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    checkpoint = last_checkpoint(tmp_path / "killed")
    assert checkpoint.name == "checkpoint-3"
    resumed = trainer(tiny_pipeline, pairs, tmp_path / "killed", mode, dropout=dropout)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_equal(trained(resumed), trained(straight))
    assert losses(resumed) == losses(straight)


def test_resuming_at_the_last_step_keeps_the_result(tiny_pipeline, pairs, tmp_path):
    straight = trainer(tiny_pipeline, pairs, tmp_path)
    straight.train()
    again = trainer(tiny_pipeline, pairs, tmp_path)
    again.train(resume_from_checkpoint=str(last_checkpoint(tmp_path)))
    assert_equal(trained(again), trained(straight))


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (20, 100, 120):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "checkpoint-120" / "trainer_state.json").write_text('{"global_')
    (tmp_path / "checkpoint-140").mkdir()
    assert last_checkpoint(tmp_path).name == "checkpoint-100"


def test_checkpoints_hold_the_adapter_alone(tiny_pipeline, pairs, tmp_path):
    run = trainer(tiny_pipeline, pairs, tmp_path)
    run.train()
    names = set(os.listdir(tmp_path / "checkpoint-6"))
    assert names == {
        "pytorch_lora_weights.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    }
    for file in ("optimizer.pt", "scheduler.pt"):
        torch.load(tmp_path / "checkpoint-6" / file, weights_only=True)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_export_reproduces_the_tuned_samples(tiny_pipeline, pairs, tmp_path, mode):
    run = trainer(tiny_pipeline, pairs, tmp_path, mode, steps=3)
    run.train()
    run.tuning.export(tmp_path / "export")
    whole = build_generator(generator_config(KIND, tiny_pipeline(KIND)))
    base = whole.sample(pairs.conditioning, [1, 2, 3]).latents
    whole.pipe.unet = run.tuning.generator.model
    tuned = whole.sample(pairs.conditioning, [1, 2, 3]).latents
    if mode == "lora":
        plain = build_generator(generator_config(KIND, tiny_pipeline(KIND)))
        load_adapter(plain, tmp_path / "export")
    else:
        plain = build_generator(generator_config(KIND, tmp_path / "export"))
    assert not torch.equal(tuned, base)
    assert torch.equal(plain.sample(pairs.conditioning, [1, 2, 3]).latents, tuned)


def test_a_loss_that_is_not_finite_names_step_pair_and_checkpoint(tiny_pipeline, pairs, tmp_path):
    broken = pairs.latents.clone()
    broken[7] = math.nan  # the loser of pairs 3 and 5
    poisoned = replace(pairs, latents=broken)
    run = trainer(tiny_pipeline, poisoned, tmp_path, micro_batch_size=1, batch_size=1, save_steps=1)
    order = run.train_dataset.__getitems__(range(6))["pair"].tolist()
    at = next(i for i, pair in enumerate(order) if pair in (3, 5))
    with pytest.raises(ValueError) as error:
        run.train()
    message = str(error.value)
    assert "\n" not in message
    assert f"step {at + 1} " in message and pairs.names[order[at]] in message
    assert " in samples; " in message  # the folder where the pair's files lie
    if at:
        assert f"checkpoint-{at} is kept" in message
        assert last_checkpoint(tmp_path).name == f"checkpoint-{at}"


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tiny_pipeline, pairs, tmp_path):
    run = trainer(tiny_pipeline, pairs, tmp_path, save_steps=1, steps=3)
    before, steps = trained(run), []

    def poison(gradient):
        steps.append(run.state.global_step)
        return gradient * math.nan if steps[-1] == 1 else gradient

    parameter = next(p for p in run.model.parameters() if p.requires_grad)
    parameter.register_hook(poison)
    with pytest.raises(ValueError, match=r"the gradient of step 2 is not finite for .*checkpoint-1 is kept"):
        run.train()
    after = trained(run)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert not all(torch.equal(after[name], before[name]) for name in after)


def test_an_engine_that_tells_no_gradient_norm_trains_on(tiny_pipeline, pairs, tmp_path, monkeypatch):
    run = trainer(tiny_pipeline, pairs, tmp_path, steps=1)
    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda *args, **kwargs: None)  # as DeepSpeed's may
    run.train()
    assert run.state.global_step == 1 and len(losses(run)) == 1


def test_activation_checkpointing_changes_memory_not_the_result(tiny_pipeline, pairs, tmp_path):
    plain = trainer(tiny_pipeline, pairs, tmp_path / "plain", steps=2)
    plain.train()
    saving = trainer(tiny_pipeline, pairs, tmp_path / "saving", steps=2, gradient_checkpointing=True)
    saving.train()
    assert saving.tuning.generator.model.is_gradient_checkpointing
    for name, parameter in trained(plain).items():
        torch.testing.assert_close(trained(saving)[name], parameter, atol=1e-6, rtol=0)


def test_bf16_starts_at_log_2_too(tiny_pipeline, pairs, tmp_path):
    run = trainer(tiny_pipeline, pairs, tmp_path, precision="bf16", steps=2, save_steps=10)
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert all(parameter.dtype == torch.float32 for parameter in trained(run).values())


def test_beta_per_element_is_printed_at_the_start_and_logged(tiny_pipeline, pairs, tmp_path, capsys):
    run = trainer(tiny_pipeline, pairs, tmp_path, steps=1)
    run.train()
    # 200 on the mean of 4 x 8 x 8 = 256 elements is .78125 on their sum
    assert run.state.log_history[0]["beta_per_element"] == 0.78125
    assert "beta 200 on the mean of 256 latent elements acts as 0.781 per element" in capsys.readouterr().out


def test_no_pairs_is_one_line(tiny_pipeline, pairs, tmp_path):
    with pytest.raises(ValueError, match="no pair"):
        trainer(tiny_pipeline, PreferencePairs(pairs.latents, pairs.conditioning, [], [], [], []), tmp_path)
