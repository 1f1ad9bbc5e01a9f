"""Stable Diffusion 1.5 and 2.1, and SDXL: a UNet conditioned on CLIP, epsilon or v-prediction."""

from __future__ import annotations

from functools import cached_property

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from generators.base import Conditioning
from generators.pipeline import PipelineGenerator


class StableDiffusion(PipelineGenerator):
    """One text encoder, 4 latent channels."""

    pipeline_class = StableDiffusionPipeline
    denoiser = "unet"
    prediction_types = ("epsilon", "v_prediction")
    # A safety checker blackens samples: a black picture is a defect of the filter, not of the sample.
    overrides = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, _ = self.pipe.encode_prompt(prompt, self.device, 1, do_classifier_free_guidance=False)
        return Conditioning({"prompt_embeds": embeds})

    def denoise(
        self, model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        embeds = conditioning["prompt_embeds"]
        return model(latents, timesteps, encoder_hidden_states=embeds, return_dict=False)[0]

    @property
    def default_size(self) -> dict[str, int]:
        size = self.model.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return {"height": height * self.pipe.vae_scale_factor, "width": width * self.pipe.vae_scale_factor}


class StableDiffusionXL(StableDiffusion):
    """Two text encoders, a pooled embedding, and the picture's size as conditioning (Podell et al. 2023)."""

    pipeline_class = StableDiffusionXLPipeline
    embeddings = ("prompt_embeds", "pooled_prompt_embeds")
    conditioners = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    overrides = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        size = tuple(self._size().values())
        time_ids = torch.tensor(
            [size + (0, 0) + size], dtype=torch.float32
        )  # original, crop's corner, target
        return Conditioning({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "time_ids": time_ids})

    @cached_property
    def unconditional(self) -> Conditioning:
        """As the base model was trained: zeros, unless `options.negative_prompt` says otherwise."""
        row = super().unconditional
        if "negative_prompt" in self.config.options or not self.pipe.config.force_zeros_for_empty_prompt:
            return row
        return Conditioning({name: torch.zeros_like(tensor) for name, tensor in row.tensors.items()})

    def denoise(
        self, model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        added = {"text_embeds": conditioning["pooled_prompt_embeds"], "time_ids": conditioning["time_ids"]}
        return model(
            latents,
            timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
