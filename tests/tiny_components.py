"""Text encoders, tokenizers and an autoencoder of the tiny random pipelines, of the real classes."""

from __future__ import annotations

import string


def clip_tokenizer():
    from transformers import CLIPTokenizer

    tokens = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
    tokens += [letter + "</w>" for letter in string.ascii_lowercase]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def clip(projection: bool = False, width: int = 32):
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


def vae(**changes):
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


def t5(width: int = 32, multilingual: bool = False):
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    settings = {
        "vocab_size": 32,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 37,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
    }
    if multilingual:
        return UMT5EncoderModel(UMT5Config(**settings)).eval()
    return T5EncoderModel(T5Config(**settings)).eval()


def t5_tokenizer():
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return T5Tokenizer(vocab=special + [(letter, -3.0) for letter in string.ascii_lowercase], extra_ids=0)
