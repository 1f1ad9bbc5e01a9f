"""Preference losses of diffusion models on per-sample errors. Pure arithmetic, shapes [B].

An error e is the mean over latent elements of (prediction - target)^2. Winner and loser of a pair share
timestep and noise, and `ref_` errors are those of the frozen reference on the same inputs. A sample's
implicit reward is -beta/2 (e - ref_e): positive where the model denoises it better than the reference does.
With delta = (e_w - ref_e_w) - (e_l - ref_e_l), the difference of the two rewards is the margin z = -beta/2
delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LossOutput:
    """Per-pair loss with its gradient, and what to log of it, detached. All [B]."""

    loss: Tensor
    chosen_rewards: Tensor  # -beta/2 (e_w - ref_e_w)
    rejected_rewards: Tensor  # -beta/2 (e_l - ref_e_l)
    winner_excess: (
        Tensor  # e_w - ref_e_w; a mean that stays positive is displacement. NaN without a reference
    )
    loser_excess: Tensor  # e_l - ref_e_l
    winner_error: Tensor  # e_w
    loser_error: Tensor  # e_l

    @property
    def margins(self) -> Tensor:
        """[B] by how much the winner's implicit reward exceeds the loser's."""
        return self.chosen_rewards - self.rejected_rewards

    @property
    def accuracies(self) -> Tensor:
        """1 where the winner has the greater implicit reward, else 0, as for all at initialisation."""
        return (self.margins > 0).float()


def denoising_error(prediction: Tensor, target: Tensor) -> Tensor:
    """[B] mean over latent elements of (prediction - target)^2, in float32 whatever the model's precision."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


# ---- what becomes of the margin z ----


def sigmoid(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - a) log sigmoid(z) - a log sigmoid(-z).

    a = 0 is DPO (Rafailov et al. 2023, arXiv 2305.18290); a > 0 is conservative DPO, which expects that share
    of labels to be wrong (Mitchell 2023).
    """
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def ipo(margin: Tensor) -> Tensor:
    """(z - 1/2)^2: the margin is drawn to a finite target instead of to infinity.

    Azar et al. 2023 (arXiv 2310.12036, equation 17), (h - 1/(2 tau))^2 with h = z / beta and tau = beta,
    times beta^2, so that its slope compares with the sigmoid's whatever beta is.
    """
    return (margin - 0.5).square()


def hinge(margin: Tensor) -> Tensor:
    """max(0, 1 - z): a pair told apart by 1 is left alone (SLiC, Zhao et al. 2023, arXiv 2305.10425)."""
    return F.relu(1 - margin)


def poly(margin: Tensor, alpha: float) -> Tensor:
    """-log p + alpha (1 - p) with p = sigmoid(z); alpha > 0 weighs pairs more that are not told apart yet.

    Poly-DPO (ViPO, arXiv 2604.24953).
    """
    return -F.logsigmoid(margin) + alpha * F.sigmoid(-margin)


# ---- whole losses ----


def diffusion_dpo(
    winner_error: Tensor,
    loser_error: Tensor,
    ref_winner_error: Tensor,
    ref_loser_error: Tensor,
    beta: float,
    sft_weight: float = 0.0,
    *,
    link: Callable[[Tensor], Tensor] = sigmoid,
    displacement_weight: float = 0.0,
    offset: Tensor | float = 0.0,
) -> LossOutput:
    """link(z) + sft_weight * e_w; with nothing else set, log 2 where model and reference agree.

    Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908, equation 14, its T omega(lambda) folded into beta).
    The SFT term keeps the winner's error from rising (Reg-DPO, arXiv 2511.01450). `displacement_weight`
    lambda takes beta/2 lambda max(0, e_w - ref_e_w) off the margin, so that a pair is not won by ruining the
    loser more than the winner (carried over from DPOP, Pal et al. 2024, arXiv 2402.13228). `offset` is what
    the margin must exceed, see `reward_offset`.
    """
    winner_excess = winner_error - ref_winner_error
    loser_excess = loser_error - ref_loser_error
    displaced = displacement_weight * F.relu(winner_excess)
    margin = -0.5 * beta * (winner_excess - loser_excess + displaced) - offset
    winner_excess, loser_excess = winner_excess.detach(), loser_excess.detach()
    return LossOutput(
        loss=link(margin) + sft_weight * winner_error,
        chosen_rewards=-0.5 * beta * winner_excess,
        rejected_rewards=-0.5 * beta * loser_excess,
        winner_excess=winner_excess,
        loser_excess=loser_excess,
        winner_error=winner_error.detach(),
        loser_error=loser_error.detach(),
    )


def mapo(
    winner_error: Tensor, loser_error: Tensor, beta: float, timesteps: int = 1000, scale: float = 0.5
) -> LossOutput:
    """e_w - beta log sigmoid(T (f(e_w) - f(e_l))) with f(e) = s e / (exp(s e) - 1): needs no reference.

    MaPO (Hong et al. 2024, arXiv 2406.06424). T is the number of training timesteps; a sample's reward is T
    f(e), which falls from T as its error rises from 0.
    """

    def reward(error: Tensor) -> Tensor:
        x = scale * error
        return timesteps * torch.where(x > 1e-6, x / torch.expm1(x.clamp(min=1e-6)), 1 - x / 2)

    chosen, rejected = reward(winner_error), reward(loser_error)
    undefined = torch.full_like(chosen.detach(), math.nan)
    return LossOutput(
        loss=winner_error - beta * F.logsigmoid(chosen - rejected),
        chosen_rewards=chosen.detach(),
        rejected_rewards=rejected.detach(),
        winner_excess=undefined,
        loser_excess=undefined,
        winner_error=winner_error.detach(),
        loser_error=loser_error.detach(),
    )


# ---- what goes into a loss ----


def reward_offset(gap: Tensor, typical_gap: float, weight: float) -> Tensor:
    """[B] the margin that a pair must exceed: `weight` times its gap in the reward over the typical gap.

    A pair whose winner is much better should be told apart more clearly (ODPO, Amini et al. 2024, arXiv
    2402.10571). Nothing is asked of one whose winner the reward finds worse, as pairs from elsewhere may be.
    """
    return weight * gap.clamp(min=0) / typical_gap


def safeguard(winner_residual: Tensor, loser_residual: Tensor, mu: float = 0.9) -> Tensor:
    """[B] kappa, by which the loser's gradient is scaled so that a step does not raise the winner's error.

    kappa = clip((1 - mu) |g_w|^2 / (g_w . g_l), 0, 1) where g_w . g_l > 0, else 1. g are the gradients of the
    errors in output space; they are proportional to the residuals prediction - target [B, ...], and the
    factor cancels. Diffusion-SDPO (arXiv 2511.03317).
    """
    winner, loser = winner_residual.detach().float().flatten(1), loser_residual.detach().float().flatten(1)
    aligned = (winner * loser).sum(1)
    kappa = (1 - mu) * winner.square().sum(1) / torch.where(aligned > 0, aligned, 1.0)
    return torch.where(aligned > 0, kappa.clamp(0, 1), 1.0)


def scale_gradient(error: Tensor, factor: Tensor) -> Tensor:
    """`error` as it is, its gradient times `factor` [B]."""
    return error.detach() + factor * (error - error.detach())


# ---- beta ----


def per_element_beta(beta: float, elements: int) -> float:
    """The beta that acts on the summed error of a latent with so many elements.

    A mean-reduced error hides the latent's size: 5000 on SD 1.5's 4 x 64 x 64 latents acts as 0.305.
    """
    return beta / elements


def auto_beta(typical_delta: float, factor: float = 0.2, least: float = 1.0, most: float = 1e5) -> float:
    """The beta at which a pair with |delta| = `typical_delta`, told apart rightly, has the gradient factor
    `factor`.

    The gradient of -log sigmoid(z) carries sigmoid(beta/2 delta), 1/2 at the start and 0 for a pair that is
    learned. sigmoid(-beta/2 |delta|) = factor gives beta = -2 logit(factor) / |delta|, held within [least,
    most]. `typical_delta` is a running mean of |delta|; 0, as at initialisation, gives `most`.
    """
    if not 0 < factor < 0.5:
        raise ValueError(f"beta: the target of the gradient factor is {factor}, must lie between 0 and 0.5")
    wanted = -2 * math.log(factor / (1 - factor))
    return min(max(wanted / typical_delta, least), most) if typical_delta > 0 else most


def running_mean(previous: float | None, value: float, decay: float = 0.99) -> float:
    """The exponential moving average after one more `value`; the first value starts it."""
    return value if previous is None else decay * previous + (1 - decay) * value
