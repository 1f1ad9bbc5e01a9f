import math
from functools import partial

import pytest
import torch

from mpo.losses import (
    auto_beta,
    denoising_error,
    diffusion_dpo,
    hinge,
    ipo,
    mapo,
    per_element_beta,
    poly,
    reward_offset,
    running_mean,
    safeguard,
    scale_gradient,
    sigmoid,
)


def errors(*values):
    return [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in values]


def test_the_error_is_the_mean_over_elements_of_each_sample():
    prediction = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]], dtype=torch.bfloat16)
    target = torch.tensor([[[0.0, 0.0]], [[3.0, 1.0]]], dtype=torch.bfloat16)
    error = denoising_error(prediction, target)
    assert error.tolist() == [2.5, 5.0] and error.dtype == torch.float32  # (1 + 4)/2, (9 + 1)/2


def test_the_loss_is_log_two_where_model_and_reference_agree():
    error = torch.rand(4)
    output = diffusion_dpo(error, error / 3, error, error / 3, beta=5000.0)
    assert torch.equal(output.loss, torch.full((4,), 2.0).log())
    assert output.accuracies.tolist() == [0.0] * 4


def test_the_loss_is_its_closed_form():
    # delta = (.3 - .5) - (.9 - .4) = -.7, z = -1/2 * 4 * -.7 = 1.4, -log sigmoid(1.4) = log(1 + e^-1.4)
    output = diffusion_dpo(*errors(0.3, 0.9, 0.5, 0.4), beta=4.0)
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-1.4)), abs=1e-12)
    assert output.chosen_rewards.item() == pytest.approx(0.4)  # -2 * (.3 - .5)
    assert output.rejected_rewards.item() == pytest.approx(-1.0)  # -2 * (.9 - .4)
    assert output.margins.item() == pytest.approx(1.4) and output.accuracies.item() == 1.0
    assert output.winner_excess.item() == pytest.approx(-0.2) and output.loser_excess.item() == pytest.approx(
        0.5
    )


def test_the_sft_term_adds_the_winners_error():
    plain, regular = (diffusion_dpo(*errors(0.3, 0.9, 0.5, 0.4), beta=4.0, sft_weight=w) for w in (0.0, 2.0))
    assert (regular.loss - plain.loss).item() == pytest.approx(2 * 0.3)


def test_the_gradient_is_its_closed_form():
    """dL/de_w = beta/2 sigmoid(-z) + lambda dL/de_l = -beta/2 sigmoid(-z); none for the reference."""
    winner, loser, ref_winner, ref_loser = errors(0.3, 0.9, 0.5, 0.4)
    diffusion_dpo(
        winner, loser, ref_winner.detach(), ref_loser.detach(), beta=4.0, sft_weight=0.5
    ).loss.backward()
    slope = 2 / (1 + math.exp(1.4))
    assert winner.grad.item() == pytest.approx(slope + 0.5)
    assert loser.grad.item() == pytest.approx(-slope)
    assert ref_winner.grad is None and ref_loser.grad is None


def test_a_better_winner_and_a_worse_loser_lower_the_loss():
    base = diffusion_dpo(*errors(0.5, 0.5, 0.5, 0.5), beta=10.0).loss
    assert diffusion_dpo(*errors(0.4, 0.5, 0.5, 0.5), beta=10.0).loss < base
    assert diffusion_dpo(*errors(0.5, 0.6, 0.5, 0.5), beta=10.0).loss < base
    assert diffusion_dpo(*errors(0.6, 0.5, 0.5, 0.5), beta=10.0).loss > base


def test_the_loss_stays_finite_far_from_the_reference():
    output = diffusion_dpo(*errors(9.0, 0.0, 0.0, 0.0), beta=5000.0)
    assert output.loss.item() == pytest.approx(0.5 * 5000 * 9)  # -log sigmoid(-z) = z for large z


def test_what_is_logged_carries_no_gradient():
    output = diffusion_dpo(*errors(0.3, 0.9, 0.5, 0.4), beta=4.0)
    assert output.loss.requires_grad
    for value in (output.chosen_rewards, output.rejected_rewards, output.margins, output.winner_excess):
        assert not value.requires_grad


def test_beta_per_element():
    assert per_element_beta(5000, 4 * 64 * 64) == pytest.approx(0.305, abs=5e-4)  # SD 1.5 at 512 pixels


def slope(link, z):
    """The derivative of a link at z."""
    z = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(link(z).sum(), z)[0].item()


def value(link, z):
    return link(torch.tensor([z], dtype=torch.float64)).item()


def test_label_smoothing_mixes_both_directions():
    # .9 log(1 + e^-2) + .1 log(1 + e^2)
    expected = 0.9 * math.log1p(math.exp(-2)) + 0.1 * math.log1p(math.exp(2))
    smoothed = partial(sigmoid, label_smoothing=0.1)
    assert value(smoothed, 2.0) == pytest.approx(expected)
    # its minimum is where sigmoid(z) = .9: z = log 9
    assert slope(smoothed, math.log(9)) == pytest.approx(0, abs=1e-12)
    assert slope(smoothed, 2.0) < 0 < slope(smoothed, 2.4)


def test_ipo_is_the_papers_regression_in_units_of_beta():
    beta, h = 4.0, 0.35  # h the log-ratio, z = beta h
    assert value(ipo, beta * h) == pytest.approx(beta**2 * (h - 1 / (2 * beta)) ** 2)
    assert slope(ipo, 0.5) == 0 and slope(ipo, 0.4) < 0 < slope(ipo, 0.6)


def test_hinge_stops_at_a_margin_of_one():
    assert [value(hinge, z) for z in (-1.0, 0.5, 1.0, 3.0)] == [2.0, 0.5, 0.0, 0.0]
    assert slope(hinge, 0.5) == -1 and slope(hinge, 1.5) == 0


def test_poly_adds_the_probability_of_being_wrong():
    p = 1 / (1 + math.exp(-0.7))
    assert value(partial(poly, alpha=2.0), 0.7) == pytest.approx(-math.log(p) + 2 * (1 - p))
    # slope -(1 - p) - alpha p (1 - p)
    assert slope(partial(poly, alpha=2.0), 0.7) == pytest.approx(-(1 - p) - 2 * p * (1 - p))
    assert value(partial(poly, alpha=0.0), 0.7) == pytest.approx(value(sigmoid, 0.7))


@pytest.mark.parametrize(
    "link", [sigmoid, partial(sigmoid, label_smoothing=0.1), ipo, hinge, partial(poly, alpha=1.0)]
)
def test_every_link_rewards_a_better_winner(link):
    base, better, worse = (
        diffusion_dpo(*errors(e, 0.5, 0.5, 0.5), beta=1.0, link=link) for e in (0.5, 0.4, 0.6)
    )
    assert better.loss < base.loss < worse.loss


def test_displacement_takes_off_the_margin_only_where_the_winner_rises():
    # risen: delta = .2 - .5 = -.3, z = -2 (-.3 + 3 * .2) = -.6 instead of .6
    risen = diffusion_dpo(*errors(0.7, 0.9, 0.5, 0.4), beta=4.0, displacement_weight=3.0)
    assert risen.loss.item() == pytest.approx(math.log1p(math.exp(0.6)))
    assert risen.margins.item() == pytest.approx(0.6)  # what is logged is the implicit rewards' difference
    fallen = [
        diffusion_dpo(*errors(0.3, 0.9, 0.5, 0.4), beta=4.0, displacement_weight=w).loss for w in (0.0, 3.0)
    ]
    assert fallen[0] == fallen[1]


def test_the_offset_must_be_exceeded():
    # z = 1.4 (see above); an offset of 2 * .6 / .8 = 1.5 leaves -.1
    offset = reward_offset(torch.tensor([0.6], dtype=torch.float64), typical_gap=0.8, weight=2.0)
    output = diffusion_dpo(*errors(0.3, 0.9, 0.5, 0.4), beta=4.0, offset=offset)
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(0.1)))


def test_mapo_is_its_closed_form():
    def f(e):
        return 0.5 * e / (math.exp(0.5 * e) - 1)

    winner, loser = errors(0.2, 0.6)
    output = mapo(winner, loser, beta=0.25, timesteps=10)
    z = 10 * (f(0.2) - f(0.6))
    assert output.loss.item() == pytest.approx(0.2 + 0.25 * math.log1p(math.exp(-z)))
    assert output.margins.item() == pytest.approx(z) and output.accuracies.item() == 1.0
    assert output.winner_excess.isnan().all()
    output.loss.backward()
    assert winner.grad > 0 > loser.grad


def test_mapo_is_smooth_down_to_no_error():
    winner, loser = errors(0.0, 1e-9)
    output = mapo(winner, loser, beta=1.0, timesteps=1)
    assert output.chosen_rewards.item() == 1.0
    output.loss.backward()
    # f' = -s/2 at 0: d/de_w = 1 + sigmoid(-z) s/2 = 1 + 1/2 * 1/4
    assert winner.grad.item() == pytest.approx(1.125) and loser.grad.item() == pytest.approx(-0.125)


def test_the_safeguard_scales_a_loser_that_pulls_the_winner_along():
    winner = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    loser = torch.tensor([[2.0, 5.0], [-2.0, 1.0], [0.0, 1.0], [1.0, 7.0]])
    # g_w . g_l = 2, -2, 0, 3; (1 - .9) |g_w|^2 / (g_w . g_l) = .1 / 2, -, -, .9 / 3
    assert safeguard(winner, loser, mu=0.9).tolist() == pytest.approx([0.05, 1.0, 1.0, 0.3])
    assert safeguard(winner, loser, mu=-9.0).tolist() == [1.0] * 4  # never more than all of it


def test_a_safeguarded_step_does_not_raise_the_winners_error():
    """One vector predicts both; driving it away from the loser's target raises both errors."""
    torch.manual_seed(0)
    target_w = torch.randn(1, 50)
    target_l = 2 * target_w + torch.randn(1, 50)
    prediction = torch.zeros(1, 50, requires_grad=True)
    winner_error, loser_error = denoising_error(prediction, target_w), denoising_error(prediction, target_l)
    kappa = safeguard(prediction - target_w, prediction - target_l, mu=0.0)
    assert 0 < kappa < 1

    def change(loss):
        """First-order change of the winner's error in a step down `loss`, per unit of the rate."""
        step, slope = (
            torch.autograd.grad(of.sum(), prediction, retain_graph=True)[0] for of in (loss, winner_error)
        )
        return -(step * slope).sum().item()

    assert change(winner_error - loser_error) > 1e-3
    assert change(winner_error - scale_gradient(loser_error, kappa)) == pytest.approx(0, abs=1e-6)


def test_scaling_a_gradient_leaves_the_value():
    error = torch.tensor([2.0, 3.0], requires_grad=True)
    scaled = scale_gradient(error, torch.tensor([0.25, 1.0]))
    assert torch.equal(scaled, error)
    scaled.sum().backward()
    assert error.grad.tolist() == [0.25, 1.0]


def test_auto_beta_reaches_its_gradient_factor():
    delta = 3e-4
    beta = auto_beta(delta, factor=0.2)
    assert 1 / (1 + math.exp(beta / 2 * delta)) == pytest.approx(
        0.2
    )  # the factor of a pair told apart by delta
    assert auto_beta(2 * delta) == pytest.approx(beta / 2)
    assert auto_beta(1e-12, most=5000.0) == auto_beta(0.0, most=5000.0) == 5000.0
    assert auto_beta(1e9, least=10.0) == 10.0
    with pytest.raises(ValueError, match="between 0 and 0.5"):
        auto_beta(delta, factor=0.5)


def test_the_running_mean_starts_with_the_first_value():
    assert running_mean(None, 4.0) == 4.0
    assert running_mean(4.0, 8.0, decay=0.75) == 5.0
