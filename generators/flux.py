"""FLUX.1: a rectified flow over patches, CLIP pooled and T5; dev takes the guidance scale as an input."""

from __future__ import annotations

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from generators.base import Conditioning
from generators.pipeline import PipelineGenerator


class Flux(PipelineGenerator):
    """Latents are held as [B, C, H, W]; the transformer sees [B, H/2 W/2, 4 C] with each patch's place."""

    pipeline_class = FluxPipeline
    embeddings = ("prompt_embeds", "pooled_prompt_embeds")
    conditioners = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    overrides = {"image_encoder": None, "feature_extractor": None}
    lora_targets = [
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ]
    options = ("vae_slicing", "vae_tiling", "max_sequence_length")
    guided = False  # distilled: guidance is an input, there is no unconditional branch

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, pooled, _ = self.pipe.encode_prompt(
            prompt,
            prompt_2=None,
            device=self.device,
            max_sequence_length=self.config.options.get("max_sequence_length", 512),
        )
        return Conditioning({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})

    def denoise(
        self, model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        rows, channels, height, width = latents.shape
        text = conditioning["prompt_embeds"]
        guidance = None
        if self.model.config.guidance_embeds:
            guidance = torch.full([rows], self.config.guidance_scale, device=latents.device)
        prediction = model(
            hidden_states=self.pipe._pack_latents(latents, rows, channels, height, width),
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=guidance,
            pooled_projections=conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=self.pipe._prepare_latent_image_ids(
                rows, height // 2, width // 2, latents.device, latents.dtype
            ),
            return_dict=False,
        )[0]
        return self._unpack(prediction, height, width)

    def from_pipeline(self, latents: Tensor) -> Tensor:
        size = {name: value // self.pipe.vae_scale_factor for name, value in self._size().items()}
        return self._unpack(latents, **size)

    def _unpack(self, latents: Tensor, height: int, width: int) -> Tensor:
        return self.pipe._unpack_latents(latents, height, width, vae_scale_factor=1)

    @property
    def size_multiple(self) -> int:
        return self.pipe.vae_scale_factor * 2
