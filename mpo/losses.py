"""Preference losses of diffusion models on per-sample errors. Pure arithmetic, shapes [B].

An error e is the mean over latent elements of (prediction - target)^2. Winner and loser of a pair share
timestep and noise, and `ref_` errors are those of the frozen reference on the same inputs. A sample's
implicit reward is -beta/2 (e - ref_e): positive where the model denoises it better than the reference does.
With delta = (e_w - ref_e_w) - (e_l - ref_e_l), the difference of the two rewards is the margin z = -beta/2
delta.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LossOutput:
    """Per-pair loss with its gradient, and what to log of it, detached. All [B]."""

    loss: Tensor
    chosen_rewards: Tensor  # -beta/2 (e_w - ref_e_w)
    rejected_rewards: Tensor  # -beta/2 (e_l - ref_e_l)
    winner_excess: Tensor  # e_w - ref_e_w; a mean that stays positive is displacement
    loser_excess: Tensor  # e_l - ref_e_l

    @property
    def margins(self) -> Tensor:
        return self.chosen_rewards - self.rejected_rewards

    @property
    def accuracies(self) -> Tensor:
        """1 where the winner has the greater implicit reward, else 0: at initialisation 0, all rewards being
        equal.
        """
        return (self.margins > 0).float()


def denoising_error(prediction: Tensor, target: Tensor) -> Tensor:
    """[B] mean over latent elements of (prediction - target)^2, in float32 whatever the model's precision."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def per_element_beta(beta: float, elements: int) -> float:
    """The beta that acts on the summed error of a latent with so many elements.

    A mean-reduced error hides the latent's size: 5000 on SD 1.5's 4 x 64 x 64 latents acts as 0.305.
    """
    return beta / elements


def diffusion_dpo(
    winner_error: Tensor,
    loser_error: Tensor,
    ref_winner_error: Tensor,
    ref_loser_error: Tensor,
    beta: float,
    sft_weight: float = 0.0,
) -> LossOutput:
    """-log sigmoid(-beta/2 delta) + sft_weight * e_w: log 2 where model and reference agree, plus the second
    term.

    Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908, equation 14, T omega(lambda) folded into beta). The
    SFT term keeps the winner's error from rising (Reg-DPO, arXiv 2511.01450).
    """
    winner_excess = winner_error - ref_winner_error
    loser_excess = loser_error - ref_loser_error
    margin = -0.5 * beta * (winner_excess - loser_excess)
    winner_excess, loser_excess = winner_excess.detach(), loser_excess.detach()
    return LossOutput(
        loss=-F.logsigmoid(margin) + sft_weight * winner_error,
        chosen_rewards=-0.5 * beta * winner_excess,
        rejected_rewards=-0.5 * beta * loser_excess,
        winner_excess=winner_excess,
        loser_excess=loser_excess,
    )
