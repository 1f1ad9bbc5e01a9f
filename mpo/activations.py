"""What autograd keeps of a denoiser's row while it trains, from the denoiser's config. Imports no torch.

Fits to SD 1.5's UNet and the transformers of SD 3.5 and Wan, good to about a third: of a transformer some 40
numbers a token, channel and layer, of a UNet some 10 a place, channel and residual block, and 32 a
transformer block. With checkpointing the inputs of each block remain, and all of one block while it is
recomputed.
"""

from __future__ import annotations

import math
from typing import Any

_LAYER = 40  # numbers that autograd keeps of a transformer's layer, a token and channel
_RESIDUAL = 10  # ... of a UNet's residual block, a place and channel
_KEPT = 1.2  # ... of a layer that is recomputed
_KEPT_UNET = 3.2


def activations(denoiser: dict[str, Any], latent: tuple[int, int, int]) -> tuple[float, float] | None:
    """Numbers that autograd keeps of a row: without and with checkpointing. `latent`: frames, height, width.

    None for an architecture whose config has other names.
    """
    frames, height, width = latent
    if "block_out_channels" in denoiser:
        return _unet(denoiser, height * width)
    names = ("num_attention_heads", "attention_head_dim", "num_layers")
    heads, depth, layers = (denoiser.get(name) for name in names)
    if not (heads and depth and layers):
        return None
    layers += denoiser.get("num_single_layers") or 0
    patch, patch_frames = denoiser.get("patch_size") or 1, 1
    if isinstance(patch, list):
        patch_frames, patch = patch[0], patch[1]
    if denoiser.get("_class_name") == "FluxTransformer2DModel":
        patch = 2  # its latents are packed before it sees them
    tokens = math.ceil(frames / patch_frames) * (height // patch) * (width // patch)
    text = denoiser.get("max_text_seq_length") or (0 if frames > 1 else 333)
    layer = (tokens + text) * heads * depth
    return _LAYER * layer * layers, _KEPT * layer * layers + _LAYER * layer


def _unet(denoiser: dict[str, Any], places: int) -> tuple[float, float]:
    """Over the levels of a UNet, each at half the side of the one before it, down and up again."""
    channels, levels = denoiser["block_out_channels"], len(denoiser["block_out_channels"])
    down = denoiser.get("down_block_types") or [""] * levels
    blocks = denoiser.get("layers_per_block", 2)
    deep = denoiser.get("transformer_layers_per_block", 1)
    deep = deep if isinstance(deep, list) else [deep] * levels
    residual = attention = inputs = largest = 0.0
    for level, width in enumerate(channels):
        size = places / 4**level * width
        count = 2 * blocks + 1 + (2 if level == levels - 1 else 0)  # down, up, and the middle at the last
        residual += count * size
        inputs += count * size
        if "Attn" in down[level] or "Attention" in down[level]:
            attention += (2 * blocks + 1) * deep[level] * size
            inputs += (2 * blocks + 1) * size
            largest = max(largest, deep[level] * size)
    attention += deep[-1] * places / 4 ** (levels - 1) * channels[-1]  # the middle's
    block = 0.8 * _LAYER
    return _RESIDUAL * residual + block * attention, _KEPT_UNET * inputs + block * largest
