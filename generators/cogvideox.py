"""CogVideoX 2B and 5B: a video transformer with v-prediction, a T5, and a causal 3-D VAE.

Its schedulers shift the signal-to-noise ratio and reach zero at the last step; both stand in
`alphas_cumprod`.
"""

from __future__ import annotations

from typing import Any

from diffusers import CogVideoXPipeline
from torch import Tensor, nn

from generators.base import Conditioning
from generators.pipeline import PipelineGenerator


class CogVideoX(PipelineGenerator):
    """Latents [B, F, C, H, W], frames first."""

    pipeline_class = CogVideoXPipeline
    modality = "video"
    prediction_types = ("v_prediction",)

    def __init__(self, config: Any, denoiser_only: bool = False):
        super().__init__(config, denoiser_only)
        if self.model.config.patch_size_t is not None:  # patches in time, for which the pipeline pads clips
            raise ValueError(f"generator.path={config.path}: a CogVideoX 1.5 model; this family is 2B and 5B")

    def _encode_prompt(self, prompt: str) -> Conditioning:
        embeds, _ = self.pipe.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.model.config.max_text_seq_length,
            device=self.device,
        )
        return Conditioning({"prompt_embeds": embeds})

    def denoise(
        self, model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        _, frames, _, height, width = latents.shape
        rotary = None
        if self.model.config.use_rotary_positional_embeddings:  # 5B; 2B has sinusoidal ones of its own
            scale = self.pipe.vae_scale_factor_spatial
            rotary = self.pipe._prepare_rotary_positional_embeddings(
                height * scale, width * scale, frames, latents.device
            )
        return model(
            hidden_states=latents,
            encoder_hidden_states=conditioning["prompt_embeds"],
            timestep=timesteps,
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]

    def normalise(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2) * self.pipe.vae_scaling_factor_image

    @property
    def default_size(self) -> dict[str, int]:
        config, scale = self.model.config, self.pipe.vae_scale_factor_spatial
        return {
            "height": config.sample_height * scale,
            "width": config.sample_width * scale,
            "num_frames": config.sample_frames,
        }

    @property
    def size_multiple(self) -> int:
        return self.pipe.vae_scale_factor_spatial * self.model.config.patch_size

    @property
    def frames_multiple(self) -> int:
        # The VAE takes latent frames two by two. Of an odd number the first gives one frame and each other
        # `ratio`; of an even one the first gives `ratio` too, and the clip is longer than was asked for.
        ratio = self.pipe.vae_scale_factor_temporal
        return 2 * ratio if ratio > 1 else 1
