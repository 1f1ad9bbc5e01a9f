"""Trains the bundled generator from nothing: an autoencoder, then a text encoder and UNet. Seeded.

The captioned renders that the UNet learns from are wrong or defective at the rates of `WRONG`, so that
the base model is imperfect in every dimension, as models trained on the web are.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from quickstart.recipe import encode, save, stopwatch, train_autoencoder, train_denoiser
from quickstart.world import NAMES, all_scenes, corrupt, prompt_of, render

WRONG = {  # share of the captioned renders in which the caption is wrong, or the picture defective
    "shape": 0.1,
    "colour": 0.12,
    "size": 0.15,
    "place": 0.15,
    "background": 0.15,
    "blur": 0.25,
    "specks": 0.25,
    "present": 0.02,
}
LATENT_CHANNELS = 8
PROMPT_TOKENS = 16  # the longest prompt of this world has 13 with its start and end


def new_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer whose merges make a token of each word of this world; bytes spell others.

    The last bytes of words are named beforehand: the trainer would number them in the order in which it meets
    words, another each time, and break ties between merges by number.
    """
    pieces = CLIPTokenizer().backend_tokenizer  # for CLIP's normalizer and word splitting
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = pieces.normalizer, pieces.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        special_tokens=["<|startoftext|>", "<|endoftext|>", *(f"{byte}</w>" for byte in alphabet)],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([prompt_of(scene) for scene in all_scenes()], trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    return CLIPTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=PROMPT_TOKENS)


def new_pipeline() -> StableDiffusionPipeline:
    """Return the untrained pipeline: 64x64 pixels, 8x8 latents, 3.8 M parameters."""
    tokenizer = new_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=PROMPT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    with torch.no_grad():  # a narrow posterior: the noise of a wide one hides what is to be learned
        vae.quant_conv.bias[LATENT_CHANNELS:] = -6.0
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.018,  # ends with 0.0005 of the signal's energy: sampling starts from noise alone
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
        prediction_type="v_prediction",  # where all is noise, the picture's layout is predicted as well
    )
    text_encoder = CLIPTextModel(text)
    for table, std in (("token", 1.0), ("position", 0.3)):  # words that stand out from the start
        torch.nn.init.normal_(text_encoder.get_parameter(f"embeddings.{table}_embedding.weight"), std=std)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build(
    folder: Path,
    seed: int = 0,
    autoencoder_steps: int = 2200,
    denoiser_rounds: Sequence[int] = (7200, 4800),
) -> None:
    """Train the generator and save it to `folder` in half precision, renamed when complete."""
    log = stopwatch()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    asked = np.concatenate([all_scenes()] * 20)
    pictures = render(corrupt(asked, rng, WRONG), rng)
    log(f"rendered {len(pictures)} pictures of {len(NAMES)} attributes")
    pipe = new_pipeline()
    pipe.vae.to(memory_format=torch.channels_last)  # faster on CPU
    train_autoencoder(pipe.vae, pictures, autoencoder_steps, log, batch=16, peak=2e-3)
    pipe.unet.to(memory_format=torch.channels_last)
    train_denoiser(
        pipe,
        pipe.unet,
        lambda noisy, timesteps, embeds: pipe.unet(noisy, timesteps, embeds).sample,
        encode(pipe.vae, pictures),
        [prompt_of(scene) for scene in asked],
        denoiser_rounds,
        log,
    )
    save(pipe, folder)
    log(f"saved {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build(arguments.folder, arguments.seed)
