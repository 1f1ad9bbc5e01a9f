"""Mid-sized random models of transformers' families, saved as folders and loaded as users load them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rewards import load_judge, load_media
from rewards.judges.transformers_vlm import TransformersJudge
from rewards.media import Media

DECODER = {
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
SIZE = (720, 480)


def llava(tokenizer: PreTrainedTokenizerFast) -> tuple[TransformersJudge, Media]:
    """LLaVA: tower 3 x 384 at 336 pixels, decoder 4 x 512."""
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=3, num_attention_heads=6, image_size=336
    )
    config = LlavaConfig(
        vision_config={**vision.to_dict(), "patch_size": 14},
        text_config=LlamaConfig(**DECODER),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    settings = {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    return judge("llava", model, tokenizer, pixels, settings, "{image} Question: {question} Short answer:")


def qwen2_vl(tokenizer: PreTrainedTokenizerFast) -> tuple[TransformersJudge, Media]:
    """Qwen2-VL: tower 3 x 384, decoder 4 x 512 with multimodal rotary positions."""
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": names})
    ids = tokenizer.convert_tokens_to_ids(names)
    fields = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    config = Qwen2VLConfig(
        text_config={**DECODER, "rope_parameters": rope},
        vision_config={"depth": 3, "embed_dim": 384, "hidden_size": 512, "num_heads": 6, "mlp_ratio": 4},
        **dict(zip(fields, ids, strict=True)),
    )
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config)
    template = "<|vision_start|>{image}<|vision_end|> Question: {question} Short answer:"
    return judge("qwen2-vl", model, tokenizer, Qwen2VLImageProcessorPil(), {}, template)


def judge(name, model, tokenizer, pixels, settings: dict, template: str) -> tuple[TransformersJudge, Media]:
    """Saves a model's folder, loads it as a judge, and makes a picture for it."""
    with tempfile.TemporaryDirectory() as folder:
        for part in (model, tokenizer, pixels):
            part.save_pretrained(folder)
        if settings:
            (Path(folder) / "processor_config.json").write_text(json.dumps(settings))
        loaded = load_judge(folder, device="cpu", template=template)
    loaded.name = name
    noise = torch.randint(0, 256, (*reversed(SIZE), 3), generator=torch.Generator().manual_seed(0))
    return loaded, load_media(Image.fromarray(noise.to(torch.uint8).numpy()))
