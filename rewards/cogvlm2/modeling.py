"""CogVLM2 and CogVLM2-Video as transformers models, named as the released checkpoints name them.

Architecture: the released cogvlm2-llama3-chat-19B and CogVLM2-Video; VisionReward (arXiv 2412.21059)
fine-tunes both.
Shapes: B batch, L tokens, I pictures or frames of side S, H width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from rewards.cogvlm2.configuration import CogVLM2Config, CogVLM2VideoConfig, read_config
from rewards.cogvlm2.language import DecoderLayer, RMSNorm, Rotary
from rewards.cogvlm2.tokens import positions, seen_by_expert
from rewards.cogvlm2.vision import PatchEmbedding, VisionModel


class CogVLM2PreTrainedModel(PreTrainedModel):
    """What transformers needs to know of either model: its config, first weights and where it splits."""

    config_class = CogVLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer", "VisionModel"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Rotary):
            init.copy_(module.inv_freq, Rotary.frequencies(self.config.head_dim))
        elif isinstance(module, PatchEmbedding):
            init.normal_(module.cls_embedding, std=std)
        elif isinstance(module, VisionModel):
            init.normal_(module.boi, std=std)
            init.normal_(module.eoi, std=std)


class CogVLM2Model(CogVLM2PreTrainedModel):
    """The decoder with its eyes: ids, token types and pixels to hidden states."""

    def __init__(self, config: CogVLM2Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.vision = VisionModel(config)
        self.post_init()

    def embed(self, input_ids: Tensor, token_type_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """Embeddings [B, L, H]; those of type 1 are, in order, what the tower sees in `pixel_values`.

        ValueError where that is more or less than they have place for.
        """
        embeds = self.embed_tokens(input_ids)
        if pixel_values is None:
            return embeds
        seen = self.vision(pixel_values).to(embeds).flatten(0, 1)
        image = (token_type_ids == 1).to(embeds.device)
        if image.sum() != len(seen):
            raise ValueError(
                f"pixel_values: {len(pixel_values)} pictures make {len(seen)} tokens, not {image.sum()}"
            )
        return embeds.masked_scatter(image.unsqueeze(-1), seen)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, L, H].

        token_type_ids [B, L]: 1 for image tokens, 0 for text (the default). pixel_values [I, 3, S, S]: the
        pictures or frames of the whole batch, in reading order. attention_mask: [B, L] with 0 for padding, or
        a boolean [B, 1, L, cached + L]. position_ids [B, L] follow from the types, except behind a cache.
        ValueError where they are left out there, and where pictures make more or fewer tokens than the types
        have place for.
        """
        if token_type_ids is None:
            like = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
            token_type_ids = torch.zeros_like(like, dtype=torch.long)
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, token_type_ids, pixel_values)
        if position_ids is None:
            if past_key_values is not None and past_key_values.get_seq_length() > 0:
                raise ValueError("position_ids: needed behind a cache, since image tokens share a position")
            position_ids = positions(token_type_ids, attention_mask)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        # Positions repeat inside a picture; told them, transformers would see packed sequences.
        mask = create_causal_mask(self.config, inputs_embeds, attention_mask, past_key_values)
        expert = seen_by_expert(token_type_ids) if self.config.vision_experts else None
        hidden, states = inputs_embeds, []
        for layer in self.layers:
            if output_hidden_states:
                states.append(hidden)
            hidden = layer(hidden, position_ids, mask, expert, past_key_values)
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=(*states, hidden) if output_hidden_states else None,
        )


class CogVLM2ForCausalLM(CogVLM2PreTrainedModel, GenerationMixin):
    """Either model. Its `from_pretrained` gives the class that the checkpoint's `architectures` names."""

    def __init__(self, config: CogVLM2Config):
        super().__init__(config)
        self.model = CogVLM2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, path, *args, config=None, output_loading_info=False, **kwargs):
        """The model in a folder or hub repository; keywords as in transformers (dtype, device_map, ...).

        ValueError names the first weights that are missing, unexpected or of another shape.
        """
        config = config or read_config(path, **kwargs)
        model_class = CogVLMForCausalLM if config.vision_experts else CogVLMVideoForCausalLM
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        load = super(CogVLM2ForCausalLM, model_class).from_pretrained
        model, loading = load(path, *args, config=config, **kwargs)
        shapes = {key for key, *_ in loading["mismatched_keys"]}
        found = {
            "missing": set(loading["missing_keys"]) - shapes,
            "unexpected": set(loading["unexpected_keys"]),
            "of another shape": shapes,
        }
        faults = [f"{len(keys)} {what}, first {min(keys)}" for what, keys in found.items() if keys]
        if faults:
            raise ValueError(f"not the weights of {model_class.__name__}: {'; '.join(faults)}")
        return (model, loading) if output_loading_info else model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Next-token logits [B, L, V] in float32, and the loss of `labels` [B, L] (-100: not counted).

        `logits_to_keep`: only the last so many positions, or those of an index. The rest as
        `CogVLM2Model.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            pixel_values=pixel_values,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept]).float()
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict) -> Tensor:
        """`generate` asks for positions here; left to itself it would count every image token."""
        token_type_ids = model_kwargs.get("token_type_ids")
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(inputs_tensor)
        return positions(token_type_ids, model_kwargs.get("attention_mask"))


class CogVLMForCausalLM(CogVLM2ForCausalLM):
    """CogVLM2 for images, 19.5 B as released: zai-org/VisionReward-Image."""


class CogVLMVideoForCausalLM(CogVLM2ForCausalLM):
    """CogVLM2-Video, 12.5 B as released: zai-org/VisionReward-Video."""

    config_class = CogVLM2VideoConfig


for config_class, model_class in (
    (CogVLM2Config, CogVLMForCausalLM),
    (CogVLM2VideoConfig, CogVLMVideoForCausalLM),
):
    AutoConfig.register(config_class.model_type, config_class)
    AutoModelForCausalLM.register(config_class, model_class)
    AutoModelForImageTextToText.register(config_class, model_class)
