"""Stable Diffusion 1.5 and 2.1: a UNet over 4-channel latents, one CLIP text encoder, epsilon or
v-prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from generators.base import Conditioning
from generators.pipeline import PipelineGenerator


class StableDiffusion(PipelineGenerator):
    pipeline_class = StableDiffusionPipeline
    denoiser = "unet"
    prediction_types = ("epsilon", "v_prediction")
    # A safety checker blackens samples: a black picture is a defect of the filter, not of the sample.
    overrides = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, _ = self.pipe.encode_prompt(prompt, self.device, 1, do_classifier_free_guidance=False)
        return Conditioning({"prompt_embeds": embeds})

    def predict(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, model: nn.Module | None = None
    ) -> Tensor:
        model = self.model if model is None else model
        embeds = conditioning["prompt_embeds"].to(latents.device, self.dtype)
        return model(latents.to(self.dtype), timesteps, encoder_hidden_states=embeds, return_dict=False)[0]

    @property
    def default_size(self) -> dict[str, int]:
        size = self.model.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return {"height": height * self.pipe.vae_scale_factor, "width": width * self.pipe.vae_scale_factor}

    @torch.no_grad()
    def encode(self, media: Sequence[Image.Image]) -> Tensor:
        """Latents [B, 4, H, W]: each picture scaled and cropped to the generator's size, the VAE's mean."""
        pixels = self.pipe.image_processor.preprocess(list(media), **self._size(), resize_mode="crop")
        vae = self.pipe.vae
        mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return (mean * vae.config.scaling_factor).cpu()
