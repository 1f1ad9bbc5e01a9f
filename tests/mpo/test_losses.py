import math

import pytest
import torch

from mpo.losses import denoising_error, diffusion_dpo, per_element_beta


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
