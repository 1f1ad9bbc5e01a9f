"""Diffusion pipelines of the real classes with random weights, in two sizes, for timings."""

from __future__ import annotations

import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

SIZES = {  # the denoiser's width and blocks, the VAE's widths, the text encoder's width and layers
    "unet tiny": (32, 1, (16, 16, 16, 16), 64, 2),
    "unet mid": (160, 1, (64, 96, 96, 96), 384, 6),
    "transformer tiny": (192, 6, 8, 64, 2),  # a step about as long as the tiny UNet's
    "transformer mid": (768, 8, 24, 384, 6),
}
MEDIA = {"unet": {"height": 128, "width": 128}, "transformer": {"height": 64, "width": 64, "frames": 5}}


def save_pipeline(name: str, folder: Path) -> SimpleNamespace:
    """Write the pipeline `name` of `SIZES` to `folder` and return the settings of a generator over it."""
    torch.manual_seed(0)
    kind = name.split()[0]
    pipe = _unet(*SIZES[name]) if kind == "unet" else _transformer(*SIZES[name])
    pipe.save_pretrained(folder)
    settings = {"height": None, "width": None, "frames": None, "options": {}} | MEDIA[kind]
    if kind == "transformer":
        settings["options"] = {"max_sequence_length": 77}
    return SimpleNamespace(
        family={"unet": "stable_diffusion", "transformer": "wan"}[kind],
        path=str(folder),
        dtype="float32",
        device="auto",
        steps=1,
        guidance_scale=1.0,
        **settings,
    )


def _unet(width: int, blocks: int, vae: tuple[int, ...], text: int, layers: int) -> Any:
    letters = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters]
    encoder = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=text,
        intermediate_size=4 * text,
        num_hidden_layers=layers,
        num_attention_heads=text // 32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=vae,
            down_block_types=["DownEncoderBlock2D"] * len(vae),
            up_block_types=["UpDecoderBlock2D"] * len(vae),
            norm_num_groups=16,
        ),
        text_encoder=CLIPTextModel(encoder),
        tokenizer=CLIPTokenizer(
            vocab={token: i for i, token in enumerate(vocabulary)}, merges=[], model_max_length=77
        ),
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(width, 2 * width, 4 * width),
            layers_per_block=blocks,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=text,
            norm_num_groups=16,
        ),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _transformer(width: int, blocks: int, vae: int, text: int, layers: int) -> Any:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    encoder = UMT5Config(
        vocab_size=32, d_model=text, d_kv=32, d_ff=4 * text, num_layers=layers, num_heads=text // 32
    )
    return WanPipeline(
        tokenizer=T5Tokenizer(
            vocab=special + [(letter, -3.0) for letter in string.ascii_lowercase], extra_ids=0
        ),
        text_encoder=UMT5EncoderModel(encoder),
        vae=AutoencoderKLWan(base_dim=vae, num_res_blocks=1),
        transformer=WanTransformer3DModel(
            num_attention_heads=width // 48,
            attention_head_dim=48,
            text_dim=text,
            ffn_dim=4 * width,
            num_layers=blocks,
            cross_attn_norm=True,
        ),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
