import math

import pytest
import torch

from generators.schedules import RectifiedFlow, VariancePreserving, flow_shift, prediction_type


def vp(prediction_type):
    return VariancePreserving(torch.tensor([0.99, 0.64, 0.36, 0.01]), prediction_type)


X0 = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
NOISE = torch.tensor([[0.5, 1.0], [-1.0, 2.0]])


def test_variance_preserving_noising_in_numbers():
    # abar .64 -> .8 x0 + .6 noise; abar .36 -> .6 x0 + .8 noise
    x_t = vp("epsilon").add_noise(X0, NOISE, torch.tensor([1, 2]))
    expected = [[0.8 * 1 + 0.6 * 0.5, 0.8 * -2 + 0.6 * 1], [0.6 * 3 + 0.8 * -1, 0.6 * 0.5 + 0.8 * 2]]
    torch.testing.assert_close(x_t, torch.tensor(expected))


def test_targets_in_numbers():
    timesteps = torch.tensor([1, 2])
    assert torch.equal(vp("epsilon").target(X0, NOISE, timesteps), NOISE)
    # v = sqrt(abar) noise - sqrt(1 - abar) x0
    v = [[0.8 * 0.5 - 0.6 * 1, 0.8 * 1 - 0.6 * -2], [0.6 * -1 - 0.8 * 3, 0.6 * 2 - 0.8 * 0.5]]
    torch.testing.assert_close(vp("v_prediction").target(X0, NOISE, timesteps), torch.tensor(v))
    torch.testing.assert_close(
        RectifiedFlow(3.0).target(X0, NOISE, timesteps), torch.tensor([[-0.5, 3.0], [-4.0, 1.5]])
    )


def test_flow_noising_in_numbers():
    x_t = RectifiedFlow(3.0).add_noise(X0, NOISE, torch.tensor([250.0, 1000.0]))
    torch.testing.assert_close(
        x_t, torch.tensor([[0.75 * 1 + 0.25 * 0.5, 0.75 * -2 + 0.25 * 1], [-1.0, 2.0]])
    )


@pytest.mark.parametrize("schedule", [vp("epsilon"), vp("v_prediction"), RectifiedFlow(3.0)])
def test_the_exact_target_gives_x0_back(schedule):
    timesteps = schedule.sample_timesteps(torch.Generator().manual_seed(0), 2)
    x_t = schedule.add_noise(X0, NOISE, timesteps)
    torch.testing.assert_close(
        schedule.x0(x_t, schedule.target(X0, NOISE, timesteps), timesteps), X0, atol=1e-4, rtol=0
    )


def test_v_prediction_gives_x0_back_at_zero_terminal_snr():
    schedule = VariancePreserving(torch.tensor([0.5, 0.0]), "v_prediction")
    timesteps = torch.tensor([1, 1])
    x_t = schedule.add_noise(X0, NOISE, timesteps)
    assert torch.equal(x_t, NOISE)
    assert torch.equal(schedule.x0(x_t, schedule.target(X0, NOISE, timesteps), timesteps), X0)


def test_timesteps_cover_the_schedule_uniformly():
    timesteps = vp("epsilon").sample_timesteps(torch.Generator().manual_seed(0), 40_000)
    shares = torch.bincount(timesteps, minlength=4) / 40_000
    assert shares.sub(0.25).abs().max() < 0.01


def test_flow_timesteps_are_shifted_logit_normal():
    schedule = RectifiedFlow(3.0)
    timesteps = schedule.sample_timesteps(torch.Generator().manual_seed(0), 40_000)
    # The median of a logit-normal is 1/2, which a shift of 3 moves to 3/2 / (1 + 2/2) = 3/4.
    assert timesteps.median() == pytest.approx(750, abs=5)
    # logit(sigma') = log 3 + a standard normal
    logit = torch.logit(timesteps / 1000)
    assert logit.mean() == pytest.approx(math.log(3), abs=0.02)
    assert logit.std() == pytest.approx(1, abs=0.02)


def test_flow_shift_of_scheduler_configs():
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    assert prediction_type(DDIMScheduler()) == "epsilon"
    sd3 = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert prediction_type(sd3) == "flow" and flow_shift(sd3.config) == 3.0
    wan = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction")
    assert prediction_type(wan) == "flow" and flow_shift(wan.config) == 5.0
    flux = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    ).config
    # mu is linear in the tokens: .5 at 256, 1.15 at 4096, halfway .825
    assert flow_shift(flux, 256) == pytest.approx(math.exp(0.5))
    assert flow_shift(flux, 2176) == pytest.approx(math.exp(0.825))
    assert flow_shift(flux, 4096) == pytest.approx(math.exp(1.15))


def test_flow_shift_is_the_samplers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sigma = torch.linspace(0.1, 0.9, 5)
    scheduler.set_timesteps(sigmas=sigma.tolist())
    torch.testing.assert_close(scheduler.sigmas[:-1], 3 * sigma / (1 + 2 * sigma))
