"""Wan 2.1: a video transformer trained as a flow, a UMT5, and a causal 3-D VAE."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor, nn

from generators.base import Conditioning
from generators.pipeline import PipelineGenerator


class Wan(PipelineGenerator):
    """Latents [B, C, F, H, W], sampled in float32 whatever the transformer's precision."""

    pipeline_class = WanPipeline
    modality = "video"
    frame_rate = 16.0
    float32_components = ("vae",)
    options = (*PipelineGenerator.options, "max_sequence_length")

    def __init__(self, config: Any, denoiser_only: bool = False):
        super().__init__(config, denoiser_only)
        if self.pipe.config.boundary_ratio is not None or self.pipe.config.expand_timesteps:
            raise ValueError(f"generator.path={config.path}: a Wan 2.2 model; this family is Wan 2.1")

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, _ = self.pipe.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.options.get("max_sequence_length", 512),
            device=self.device,
        )
        return Conditioning({"prompt_embeds": embeds})

    def denoise(
        self, model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        return model(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"],
            return_dict=False,
        )[0]

    def normalise(self, latents: Tensor) -> Tensor:
        config = self.pipe.vae.config
        mean, std = (
            torch.tensor([config.latents_mean, config.latents_std]).view(2, 1, -1, 1, 1, 1).to(latents)
        )
        return (latents - mean) / std

    @property
    def default_size(self) -> dict[str, int]:
        return {"height": 480, "width": 832, "num_frames": 81}  # the pipeline's own; its models do not say

    @property
    def size_multiple(self) -> int:
        return self.pipe.vae_scale_factor_spatial * max(self.model.config.patch_size[1:])
