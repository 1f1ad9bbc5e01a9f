"""The bundled judge's architecture: a LLaVA of 1.7 M parameters, and its tokenizer.

A LeViT tower (convolutions with stride, then attention) turns 64x64 pixels into 4 visual tokens, which a
Llama of 3 layers reads before the question. Every part is a class that transformers ships; the saved folder
is an ordinary one.
"""

import re
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

VISUAL_TOKENS = 4
WIDTH = 96  # of the language model
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
IMAGE, ANSWER = "<image>", "<answer>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message.role == 'user' %}<answer>{% else %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def new_processor(texts: Sequence[str]) -> LlavaProcessor:
    """Return a processor whose word-level vocabulary is the words of `texts`; other words are <unk>."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text.lower())})
    vocabulary = {token: index for index, token in enumerate([*SPECIAL.values(), IMAGE, ANSWER, *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=[IMAGE, ANSWER], padding_side="left", **SPECIAL
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=32,  # 4 visual tokens of 32x32 pixels each
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Return the judge with random weights, in float32."""
    tokenizer = processor.tokenizer
    vision = {
        "model_type": "levit",
        "image_size": 64,
        "hidden_sizes": [256, 192],
        "hidden_size": 192,
        "num_attention_heads": [4, 4],
        "depths": [0, 1],
        "key_dim": [16, 16],
        "attention_ratio": [2, 2],
        "mlp_ratio": [2, 2],
        "down_ops": [["Subsample", 16, 16, 4, 2, 2], [""]],
    }
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "initializer_range": WIDTH**-0.5,  # the usual 0.02 is made for wide models: narrow ones hardly start
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    for name, biases in model.named_parameters():
        if name.endswith("attention_biases"):
            nn.init.normal_(biases, std=2.0)  # zeros average over places: where an object is would be lost
    nn.init.orthogonal_(model.get_input_embeddings().weight)
    return model


def visual_tokens(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Return the projected visual tokens [B, 4, WIDTH] of pixels [B, 3, 64, 64] in [-1, 1]."""
    return torch.stack(list(model.model.get_image_features(pixel_values=pixels).pooler_output))
