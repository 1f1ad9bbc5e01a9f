"""What CogVLM2 sees with: the EVA-CLIP tower and the projector into the decoder's width.

Module and parameter names are those of the released checkpoints. Shapes: I pictures (images or frames), L
tokens, h width of the tower, H width of the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from rewards.cogvlm2.configuration import CogVLM2Config, CogVLM2VisionConfig


class PatchEmbedding(nn.Module):
    """Pixels [I, 3, S, S] to [I, L, h]: patches row by row, after a class token, plus learned positions."""

    def __init__(self, config: CogVLM2VisionConfig):
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.cls_embedding = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.proj(pixel_values).flatten(2).transpose(1, 2)
        cls = self.cls_embedding.expand(len(patches), 1, -1)
        places = torch.arange(self.position_embedding.num_embeddings, device=patches.device)
        return torch.cat([cls, patches], dim=1) + self.position_embedding(places)


class VisionAttention(nn.Module):
    """Full attention between the tokens of one picture."""

    def __init__(self, config: CogVLM2VisionConfig):
        super().__init__()
        self.heads = config.num_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        fused = self.query_key_value(hidden).unflatten(-1, (3, self.heads, -1))
        query, key, value = fused.permute(2, 0, 3, 1, 4)
        output = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.dense(output.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """Two linear layers: [I, L, h] to [I, L, h]."""

    def __init__(self, config: CogVLM2VisionConfig):
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden)))


class VisionLayer(GradientCheckpointingLayer):
    """Attention and MLP, each normalised after it and before it joins the residual stream."""

    def __init__(self, config: CogVLM2VisionConfig):
        super().__init__()
        self.attention = VisionAttention(config)
        self.mlp = VisionMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.input_layernorm(self.attention(hidden))
        return hidden + self.post_attention_layernorm(self.mlp(hidden))


class VisionTransformer(nn.Module):
    """The tower's layers, without a final norm: [I, L, h] to [I, L, h]."""

    def __init__(self, config: CogVLM2VisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Projector(nn.Module):
    """Gated linear unit from the tower's width h to the decoder's width H."""

    def __init__(self, config: CogVLM2Config):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.linear_proj = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.norm1 = nn.LayerNorm(width)  # eps 1e-5, unlike the tower's norms
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.dense_h_to_4h = nn.Linear(width, inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.norm1(self.linear_proj(hidden)))
        return self.dense_4h_to_h(nn.functional.silu(self.gate_proj(hidden)) * self.dense_h_to_4h(hidden))


class VisionModel(nn.Module):
    """Pixels [I, 3, S, S] to decoder embeddings [I, L, H]: a begin, blocks of 2 x 2 patches, an end."""

    def __init__(self, config: CogVLM2Config):
        super().__init__()
        vision = config.vision_config
        self.patch_embedding = PatchEmbedding(vision)
        self.transformer = VisionTransformer(vision)
        self.conv = nn.Conv2d(vision.hidden_size, vision.hidden_size, kernel_size=2, stride=2)
        self.linear_proj = Projector(config)
        self.boi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.grid = vision.image_size // vision.patch_size

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.patch_embedding(pixel_values.to(self.boi.dtype))
        patches = self.transformer(hidden)[:, 1:]
        grid = patches.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        blocks = self.conv(grid).flatten(2).transpose(1, 2)
        tokens = self.linear_proj(blocks.contiguous())  # 4-bit kernels read memory as it lies
        ends = (len(tokens), 1, tokens.shape[-1])
        return torch.cat([self.boi.expand(ends), tokens, self.eoi.expand(ends)], dim=1)
