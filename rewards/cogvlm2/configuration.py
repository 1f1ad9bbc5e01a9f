"""Settings of CogVLM2 under the names of the released config.json files.

The defaults are those of the released sizes: `CogVLM2VideoConfig` of zai-org/VisionReward-Video (12.5 B),
`CogVLM2Config` of zai-org/VisionReward-Image (19.5 B, with vision experts).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig


class CogVLM2VisionConfig(PreTrainedConfig):
    """The vision tower (EVA-CLIP) and the image size it was trained for."""

    model_type = "cogvlm2_vision"
    base_config_key = "vision_config"

    in_channels: int = 3
    image_size: int = 1344
    patch_size: int = 14
    num_positions: int = 9217  # patches and the class token
    hidden_size: int = 1792
    num_hidden_layers: int = 63
    num_heads: int = 16
    intermediate_size: int = 15360
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    dropout_prob: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of one picture in the decoder: blocks of 2 x 2 patches, a begin and an end."""
        return (self.image_size // self.patch_size // 2) ** 2 + 2


class CogVLM2Config(PreTrainedConfig):
    """CogVLM2 for images: a Llama 3 decoder with a second set of weights, the experts, for image tokens."""

    model_type = "cogvlm2"
    sub_configs = {"vision_config": CogVLM2VisionConfig}
    attribute_map = {"num_key_value_heads": "num_multi_query_heads"}
    keys_to_ignore_at_inference = ["past_key_values"]
    vision_experts = True

    vocab_size: int = 128256
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_multi_query_heads: int = 8
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    template_version: str = "chat"  # base | vqa | chat
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = 128001
    pad_token_id: int | None = 128002  # also the placeholder of image tokens
    tie_word_embeddings: bool = False
    use_cache: bool = True
    vision_config: dict[str, Any] | CogVLM2VisionConfig | None = None

    def __post_init__(self, **kwargs):
        if not isinstance(self.vision_config, CogVLM2VisionConfig):
            self.vision_config = self.sub_configs["vision_config"](**(self.vision_config or {}))
        kwargs.pop("auto_map", None)  # names remote code, which nothing here runs
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads


class CogVLM2VideoConfig(CogVLM2Config):
    """CogVLM2-Video: no experts; a clip is a row of frames, each a small picture."""

    model_type = "cogvlm2_video"
    vision_experts = False

    max_position_embeddings: int = 2048
    template_version: str = "base"

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = {"image_size": 224, "num_positions": 257}
        super().__post_init__(**kwargs)


ARCHITECTURES = {"CogVLMForCausalLM": CogVLM2Config, "CogVLMVideoForCausalLM": CogVLM2VideoConfig}


def read_config(path: str | Path, **kwargs) -> CogVLM2Config:
    """The configuration in a folder or hub repository, told by its `architectures` alone.

    Released files have no usable `model_type`, and their `auto_map` names remote code. `kwargs` are those of
    `from_pretrained` (revision, token, ...). FileNotFoundError for a folder without config.json, another
    OSError where the hub has none; ValueError for another architecture.
    """
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"{path}: no config.json in this folder")
    content, _ = PreTrainedConfig.get_config_dict(path, **kwargs)
    architectures = content.get("architectures") or ["none"]
    if architectures[0] not in ARCHITECTURES:
        raise ValueError(f"{path}: architecture {architectures[0]} is none of {', '.join(ARCHITECTURES)}")
    content.pop("model_type", None)
    return ARCHITECTURES[architectures[0]].from_dict(content)
