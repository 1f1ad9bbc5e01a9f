"""CogVLM2's decoder layers: those of Llama 3; in the image model with further weights for image tokens.

Module and parameter names are those of the released checkpoints. Shapes: B batch, L tokens, A heads, D width
of a head, H width of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from rewards.cogvlm2.configuration import CogVLM2Config

ROPE_BASE = 500_000.0  # in no released config.json


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32; the weight is applied before the result is cast back."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        exact = hidden.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * exact).to(hidden.dtype)


class Rotary(nn.Module):
    """Rotary position embedding with the frequencies that lie, rounded to bfloat16, in the checkpoint."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.register_buffer("inv_freq", self.frequencies(head_dim))

    @staticmethod
    def frequencies(head_dim: int) -> Tensor:
        """Radians a position [D / 2], float32 with bfloat16's digits."""
        exact = ROPE_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        return exact.bfloat16().float()

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, L, D / 2] in float32 of positions [B, L].

        As in the reference, angles are computed in the type of the frequencies: float32, unless the whole
        model is cast after loading; in bfloat16 they are off by whole radians at a few hundred positions.
        """
        angles = position_ids.to(self.inv_freq.dtype).unsqueeze(-1) * self.inv_freq
        return angles.cos().float().unsqueeze(1), angles.sin().float().unsqueeze(1)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [B, A, L, D] turned by their positions, in float32; the halves of D are the pairs."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.to(states.dtype)


def by_expert(hidden: Tensor, expert: Tensor | None, language: Callable, vision: Callable | None) -> Tensor:
    """`vision(hidden)` where `expert` [B, L] is true, `language(hidden)` elsewhere; no token runs twice."""
    if expert is None:
        return language(hidden)
    seen, said = vision(hidden[expert]), language(hidden[~expert])
    output = said.new_empty(*expert.shape, said.shape[-1])
    output[expert], output[~expert] = seen, said
    return output


class MLP(nn.Module):
    """Llama's gated MLP: [..., H] to [..., H]."""

    def __init__(self, config: CogVLM2Config):
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(hidden)) * self.up_proj(hidden))


class ExpertMLP(nn.Module):
    """[B, L, H] to [B, L, H]: an MLP for text and, with experts, one for image tokens."""

    def __init__(self, config: CogVLM2Config):
        super().__init__()
        self.language_mlp = MLP(config)
        self.vision_mlp = MLP(config) if config.vision_experts else None

    def forward(self, hidden: Tensor, expert: Tensor | None) -> Tensor:
        return by_expert(hidden, expert, self.language_mlp, self.vision_mlp)


class ExpertAttention(nn.Module):
    """Causal attention with grouped keys and values; image tokens too look only back."""

    is_causal = True

    def __init__(self, config: CogVLM2Config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_key_value_groups = config.num_attention_heads // config.num_multi_query_heads
        width = config.hidden_size
        fused = (
            width + 2 * config.num_multi_query_heads * config.head_dim
        )  # queries, keys, values in this order
        self.rotary_emb = Rotary(config.head_dim)
        self.language_expert_query_key_value = nn.Linear(width, fused, bias=False)
        self.language_expert_dense = nn.Linear(width, width, bias=False)
        self.vision_expert_query_key_value = nn.Linear(width, fused) if config.vision_experts else None
        self.vision_expert_dense = nn.Linear(width, width, bias=False) if config.vision_experts else None

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        mask: Tensor | None,
        expert: Tensor | None,
        past_key_values: Cache | None,
    ) -> Tensor:
        fused = by_expert(
            hidden, expert, self.language_expert_query_key_value, self.vision_expert_query_key_value
        )
        queries, groups = self.config.num_attention_heads, self.config.num_multi_query_heads
        heads = fused.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
        query, key, value = heads.split([queries, groups, groups], dim=1)
        cos, sin = self.rotary_emb(position_ids)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attend(self, query, key, value, mask, scaling=self.config.head_dim**-0.5)
        output = output.reshape(hidden.shape)
        return by_expert(output, expert, self.language_expert_dense, self.vision_expert_dense)


class DecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, each normalised before it: [B, L, H] to [B, L, H]."""

    def __init__(self, config: CogVLM2Config, layer_idx: int):
        super().__init__()
        self.self_attn = ExpertAttention(config, layer_idx)
        self.mlp = ExpertMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        mask: Tensor | None,
        expert: Tensor | None,
        past_key_values: Cache | None,
    ) -> Tensor:
        normed = self.input_layernorm(hidden)
        hidden = hidden + self.self_attn(normed, position_ids, mask, expert, past_key_values)
        return hidden + self.mlp(self.post_attention_layernorm(hidden), expert)
