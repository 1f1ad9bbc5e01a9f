"""Tiny random pipelines of the real classes, one a family, saved the way users find them on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from tiny_components import clip, clip_tokenizer, t5, t5_tokenizer, vae


def generator_config(kind: str, path: Path | str, **changes) -> SimpleNamespace:
    """Settings of a generator over the tiny pipeline `kind` that lies in the folder `path`."""
    settings = {
        "path": str(path),
        "dtype": "float32",
        "device": "cpu",
        "steps": 3,
        "guidance_scale": 3.0,
        "height": None,
        "width": None,
        "frames": None,
        "options": {},
    }
    return SimpleNamespace(**settings | FAMILIES.get(kind, {"family": kind}) | changes)


def save_pipeline(kind: str, folder: Path) -> Path:
    """Write the tiny pipeline `kind`, the same for every call, and return its folder."""
    torch.manual_seed(0)
    pipe = BUILDERS[kind]()
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            _spread(component)
    pipe.save_pretrained(folder)
    return folder


def _spread(module: torch.nn.Module) -> None:
    """Give every parameter random values: several models start their last layer at zero, and predict
    nothing."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)


def _stable_diffusion(prediction_type: str = "epsilon"):
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,  # both text encoders side by side
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip(),
        text_encoder_2=clip(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def _stable_diffusion_3():
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        vae=vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(projection=True),
        text_encoder_2=clip(projection=True),
        text_encoder_3=t5(64),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(guidance_embeds: bool = True):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=guidance_embeds,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=guidance_embeds,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return FluxPipeline(
        vae=vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(),
        text_encoder_2=t5(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
        scheduler=scheduler,
    )


def _cogvideox(rotary: bool = False):
    """As 2B is: sinusoidal positions and DDIM; or as 5B is: rotary positions and DPM."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXDPMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=rotary,
    )
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    schedule = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    if rotary:
        scheduler = CogVideoXDPMScheduler(snr_shift_scale=1.0, **schedule)
    else:
        scheduler = CogVideoXDDIMScheduler(snr_shift_scale=3.0, **schedule)
    return CogVideoXPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(), vae=vae, transformer=transformer, scheduler=scheduler
    )


def _wan():
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(multilingual=True),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )


BUILDERS = {
    "stable_diffusion": _stable_diffusion,
    "stable_diffusion_v": lambda: _stable_diffusion("v_prediction"),
    "stable_diffusion_xl": _stable_diffusion_xl,
    "stable_diffusion_3": _stable_diffusion_3,
    "flux": _flux,
    "flux_schnell": lambda: _flux(guidance_embeds=False),
    "cogvideox": _cogvideox,
    "cogvideox_rotary": lambda: _cogvideox(rotary=True),
    "wan": _wan,
}

# The settings that make a generator of each.
FAMILIES = {
    "stable_diffusion": {"family": "stable_diffusion"},
    "stable_diffusion_v": {"family": "stable_diffusion"},
    "stable_diffusion_xl": {"family": "stable_diffusion_xl"},
    "stable_diffusion_3": {"family": "stable_diffusion_3", "options": {"max_sequence_length": 16}},
    "flux": {"family": "flux", "height": 16, "width": 24, "options": {"max_sequence_length": 16}},
    "flux_schnell": {"family": "flux", "height": 16, "width": 16, "options": {"max_sequence_length": 16}},
    "cogvideox": {"family": "cogvideox"},
    "cogvideox_rotary": {"family": "cogvideox"},
    "wan": {
        "family": "wan",
        "height": 16,
        "width": 32,
        "frames": 9,
        "options": {"max_sequence_length": 16},
    },
}
