"""Every switch of the config reaches the loss that it names."""

import math

import pytest
import torch

from mpo.config import TrainConfig
from mpo.losses import denoising_error, hinge, ipo, mapo, poly, safeguard, sigmoid
from mpo.preference_loss import preference_loss

BETA = 3.0


@pytest.fixture
def batch():
    """Predictions of model and reference and targets of two pairs, [4, 3, 2], and their errors."""
    torch.manual_seed(0)
    prediction, ref_prediction, target = torch.randn(3, 4, 3, 2, dtype=torch.float64)
    return prediction.float().requires_grad_(), ref_prediction.float(), target.float()


def loss(batch, beta=BETA, **changes):
    keys = ("safeguarded", "offset", "timesteps")
    given = {key: changes.pop(key) for key in keys if key in changes}
    return preference_loss(TrainConfig(**changes), *batch, beta, **given)


def margin(batch):
    prediction, ref_prediction, target = batch
    error = denoising_error(prediction, target) - denoising_error(ref_prediction, target)
    return -BETA / 2 * (error[:2] - error[2:])


def test_each_loss_is_its_function_of_the_margin(batch):
    z = margin(batch)
    assert torch.equal(loss(batch).loss, sigmoid(z))
    assert torch.equal(loss(batch, label_smoothing=0.2).loss, sigmoid(z, 0.2))
    assert torch.equal(loss(batch, loss="ipo").loss, ipo(z))
    assert torch.equal(loss(batch, loss="hinge").loss, hinge(z))
    assert torch.equal(loss(batch, loss="poly", poly_alpha=0.7).loss, poly(z, 0.7))
    values = [loss(batch, **change).loss for change in ({}, {"loss": "ipo"}, {"loss": "hinge"})]
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2])


def test_terms_are_added_as_they_say(batch):
    prediction, ref_prediction, target = batch
    winner = denoising_error(prediction, target)[:2]
    excess = winner - denoising_error(ref_prediction, target)[:2]
    plain, z = loss(batch).loss, margin(batch)
    torch.testing.assert_close(loss(batch, sft_weight=0.5).loss, plain + 0.5 * winner)
    displaced = sigmoid(z - BETA / 2 * 2.0 * excess.clamp(min=0))
    torch.testing.assert_close(loss(batch, dpop_weight=2.0).loss, displaced)
    assert (excess > 0).any()
    torch.testing.assert_close(
        loss(batch, offset=torch.tensor([0.5, 1.0])).loss, sigmoid(z - torch.tensor([0.5, 1.0]))
    )


def test_mapo_takes_no_reference(batch):
    prediction, _, target = batch
    output = preference_loss(TrainConfig(loss="mapo"), prediction, None, target, 0.1, timesteps=10)
    error = denoising_error(prediction, target)
    assert torch.equal(output.loss, mapo(error[:2], error[2:], 0.1, 10).loss)
    assert output.winner_excess.isnan().all()


def test_the_safeguard_scales_the_losers_gradient_and_no_value(batch):
    prediction, ref_prediction, target = batch
    target = target.clone()
    target[2:] = 3 * target[:2] - 2 * prediction[:2].detach()  # losers' residuals along the winners'
    prediction = torch.cat([prediction[:2], prediction[:2]]).detach().requires_grad_()
    outputs = [loss((prediction, ref_prediction, target), safeguarded=on) for on in (False, True)]
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    plain, safe = (torch.autograd.grad(o.loss.sum(), prediction)[0] for o in outputs)
    residual = (prediction - target).detach()
    kappa = safeguard(*residual.chunk(2), mu=0.9)
    # |r_w|^2 / (r_w . 3 r_w) = 1/3, times 1 - .9
    assert kappa.tolist() == pytest.approx([1 / 30] * 2, rel=1e-4)
    assert torch.equal(safe[:2], plain[:2])
    torch.testing.assert_close(safe[2:], plain[2:] / 30, rtol=1e-4, atol=0)


def test_all_that_has_a_reference_starts_at_its_value_for_no_margin(batch):
    _, ref_prediction, target = batch
    same = (ref_prediction, ref_prediction, target)
    starts = {"sigmoid": math.log(2), "ipo": 0.25, "hinge": 1.0}
    for name, start in starts.items():
        assert loss(same, loss=name).loss.tolist() == pytest.approx([start] * 2)
