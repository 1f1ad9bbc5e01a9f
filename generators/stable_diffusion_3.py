"""Stable Diffusion 3 and 3.5: a joint transformer trained as a rectified flow, two CLIPs and a T5."""

from __future__ import annotations

from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from generators.base import Conditioning
from generators.pipeline import PipelineGenerator


class StableDiffusion3(PipelineGenerator):
    pipeline_class = StableDiffusion3Pipeline
    embeddings = ("prompt_embeds", "pooled_prompt_embeds")
    conditioners = (
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    )
    overrides = {"image_encoder": None, "feature_extractor": None}
    lora_targets = [
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    ]
    options = (*PipelineGenerator.options, "max_sequence_length")

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.options.get("max_sequence_length", 256),
        )
        return Conditioning({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})

    def denoise(
        self, model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        return model(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"],
            pooled_projections=conditioning["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

    @property
    def size_multiple(self) -> int:
        return self.pipe.vae_scale_factor * self.pipe.patch_size

    @property
    def size_limit(self) -> int | None:
        return self.model.config.pos_embed_max_size * self.size_multiple
