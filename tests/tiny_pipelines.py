"""Tiny random pipelines of the real classes, one a family, saved the way users find them on disk."""

from __future__ import annotations

import string
from pathlib import Path
from types import SimpleNamespace

import torch


def generator_config(family: str, path: Path | str, **changes) -> SimpleNamespace:
    settings = {
        "family": family,
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
    return SimpleNamespace(**settings | changes)


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


def _clip_tokenizer():
    from transformers import CLIPTokenizer

    tokens = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
    tokens += [letter + "</w>" for letter in string.ascii_lowercase]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def _clip(projection: bool = False, width: int = 32):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=60,
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def _vae(**changes):
    from diffusers import AutoencoderKL

    settings = {
        "block_out_channels": [16, 16],
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "norm_num_groups": 8,
    }
    return AutoencoderKL(**settings | changes)


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
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=_clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


BUILDERS = {
    "stable_diffusion": _stable_diffusion,
    "stable_diffusion_v": lambda: _stable_diffusion("v_prediction"),
}
