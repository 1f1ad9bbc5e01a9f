"""Noise schedules: which timesteps, how x0 is noised, what the denoiser should predict there. Pure.

Every schedule is read from the model's own scheduler config, never assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    num_train_timesteps: int

    def sample_timesteps(self, generator: torch.Generator, size: int = 1) -> Tensor:
        """Training timesteps [size] from the schedule's own distribution."""

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t [B, ...] at `timesteps` [B]."""

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect denoiser predicts [B, ...] at x_t."""

    def x0(self, x_t: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """x0 [B, ...] that `prediction` implies at x_t: the inverse of `target`."""


@dataclass(frozen=True)
class VariancePreserving:
    """x_t = sqrt(abar) x0 + sqrt(1 - abar) noise, at uniform integer timesteps.

    The target is the noise (Ho et al. 2020, eq. 14) or v = sqrt(abar) noise - sqrt(1 - abar) x0
    (Salimans & Ho 2022, appendix D).
    """

    alphas_cumprod: Tensor  # abar [T], float32 on the CPU
    prediction_type: str  # "epsilon" or "v_prediction"

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def sample_timesteps(self, generator: torch.Generator, size: int = 1) -> Tensor:
        return torch.randint(len(self.alphas_cumprod), (size,), generator=generator)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = self._scales(timesteps, x0)
        return signal * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._scales(timesteps, x0)
        return signal * noise - sigma * x0

    def x0(self, x_t: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = self._scales(timesteps, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - sigma * prediction) / signal
        return signal * x_t - sigma * prediction

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar), shaped to multiply `like`."""
        alphas_cumprod = self.alphas_cumprod.to(like.device)[timesteps.to(like.device)]
        alphas_cumprod = alphas_cumprod.view(-1, *[1] * (like.dim() - 1))
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


@dataclass(frozen=True)
class RectifiedFlow:
    """x_t = (1 - sigma) x0 + sigma noise; the target is the velocity noise - x0 (Esser et al. 2024, eq. 13).

    sigma is the sigmoid of a standard normal (logit-normal, their section 3.1), then shifted towards noise
    as the sampler does: sigma' = shift sigma / (1 + (shift - 1) sigma). Timesteps are `num_train_timesteps`
    sigma', floats.
    """

    shift: float
    num_train_timesteps: int = 1000

    def sample_timesteps(self, generator: torch.Generator, size: int = 1) -> Tensor:
        sigma = torch.sigmoid(torch.randn(size, generator=generator))
        return self.num_train_timesteps * self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigma = self._sigma(timesteps, x0)
        return (1 - sigma) * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - x0

    def x0(self, x_t: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        return x_t - self._sigma(timesteps, x_t) * prediction

    def _sigma(self, timesteps: Tensor, like: Tensor) -> Tensor:
        return (timesteps.to(like.device).float() / self.num_train_timesteps).view(
            -1, *[1] * (like.dim() - 1)
        )


def prediction_type(scheduler) -> str:
    """What a diffusers scheduler takes the denoiser to predict: "flow" for the FlowMatch schedulers and those
    that others run on flow sigmas; else as its config says, "epsilon" or "v_prediction".

    Where noising and prediction are of two parametrisations, both are named, as no family expects them.
    """
    if type(scheduler).__name__.startswith("FlowMatch"):
        return "flow"
    predicted = scheduler.config.get("prediction_type", "epsilon")
    on_flow_sigmas = bool(scheduler.config.get("use_flow_sigmas"))
    if on_flow_sigmas == (predicted == "flow_prediction"):
        return "flow" if on_flow_sigmas else predicted
    return f"{predicted} on {'' if on_flow_sigmas else 'other than '}flow sigmas"


def flow_shift(config: dict, sequence_length: int | None = None) -> float:
    """The shift of a flow scheduler's config.

    With dynamic shifting it is e^mu, where mu is linear in the number of image tokens (`sequence_length`)
    between `base_shift` at `base_image_seq_len` and `max_shift` at `max_image_seq_len`, as FLUX sets it.
    """
    if not config.get("use_dynamic_shifting"):
        return float(config.get("flow_shift", config.get("shift", 1.0)))
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (high - low)
    mu = config["base_shift"] + slope * (sequence_length - low)
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
