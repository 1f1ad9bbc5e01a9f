"""The loss that a run's settings ask for, from what model and reference predict for pairs. Pure."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from torch import Tensor

from mpo.losses import (
    LossOutput,
    denoising_error,
    diffusion_dpo,
    hinge,
    ipo,
    mapo,
    poly,
    safeguard,
    scale_gradient,
    sigmoid,
)


class LossSettings(Protocol):
    """The fields of `mpo.config.TrainConfig` that choose a loss; its names and bounds hold here."""

    loss: str
    label_smoothing: float
    poly_alpha: float
    sft_weight: float
    dpop_weight: float
    safeguard_mu: float


def preference_loss(
    settings: LossSettings,
    prediction: Tensor,
    ref_prediction: Tensor | None,
    target: Tensor,
    beta: float,
    safeguarded: bool = False,
    offset: Tensor | float = 0.0,
    timesteps: int = 1000,
) -> LossOutput:
    """The loss [B] of B pairs; `prediction`, `ref_prediction` and `target` are [2B, ...], winners first.

    `ref_prediction` is None for mapo, which has none; `timesteps` is the number of training timesteps, for
    mapo. `safeguarded` scales the loser's gradient, see `losses.safeguard`; `offset` see
    `losses.reward_offset`.
    """
    winner_error, loser_error = denoising_error(prediction, target).chunk(2)
    if settings.loss == "mapo":
        return mapo(winner_error, loser_error, beta, timesteps)
    if safeguarded:
        kappa = safeguard(*(prediction.detach().float() - target).chunk(2), mu=settings.safeguard_mu)
        loser_error = scale_gradient(loser_error, kappa)
    links = {
        "sigmoid": partial(sigmoid, label_smoothing=settings.label_smoothing),
        "ipo": ipo,
        "hinge": hinge,
        "poly": partial(poly, alpha=settings.poly_alpha),
    }
    return diffusion_dpo(
        winner_error,
        loser_error,
        *denoising_error(ref_prediction, target).chunk(2),
        beta=beta,
        sft_weight=settings.sft_weight,
        link=links[settings.loss],
        displacement_weight=settings.dpop_weight,
        offset=offset,
    )
