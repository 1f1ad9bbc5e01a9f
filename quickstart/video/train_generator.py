"""Trains the bundled video generator from nothing: an autoencoder, then a T5 and a CogVideoX transformer.

Seeded. The captioned clips that the transformer learns from are wrong or defective at the rates of `WRONG`,
so that the base model is imperfect in every dimension, as models trained on the web are.
"""

import argparse
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from quickstart.recipe import encode, save, stopwatch, train_autoencoder, train_denoiser
from quickstart.video.world import FRAMES, SIZE, all_scenes, corrupt, prompt_of, render

WRONG = {  # share of the captioned clips in which the caption is wrong, or the clip defective
    "shape": 0.1,
    "colour": 0.12,
    "direction": 0.15,
    "speed": 0.15,
    "background": 0.12,
    "jitter": 0.2,
    "freeze": 0.2,
    "fade": 0.2,
    "recolour": 0.15,
    "reshape": 0.15,
}
LATENT_CHANNELS = 4
WINDOW = 5  # frames at once that the autoencoder learns from: it looks two frames back
PROMPT_TOKENS = 12  # every prompt of this world has 10 words; its end makes 11
TEXT_WIDTH = 64


def new_tokenizer() -> T5Tokenizer:
    """Return a T5 tokenizer with a token for each word of this world and each letter; others are unknown."""
    words = sorted({word for scene in all_scenes() for word in prompt_of(scene).split()})
    letters = sorted(set(string.ascii_lowercase) - {"a"})
    pieces = [(f"\u2581{word}", -1.0) for word in words] + [(letter, -9.0) for letter in ["a", *letters]]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -9.0)]
    return T5Tokenizer(vocab=special + pieces, extra_ids=0, model_max_length=PROMPT_TOKENS)


def new_autoencoder() -> AutoencoderKLCogVideoX:
    """Return an untrained autoencoder: 9 frames of 32x32 pixels to latents [4, 9, 8, 8]."""
    channels = (8, 16, 32)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * len(channels),
        up_block_types=("CogVideoXUpBlock3D",) * len(channels),
        block_out_channels=channels,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        temporal_compression_ratio=1,  # nine frames are few: each keeps latents of its own
        sample_height=SIZE,
        sample_width=SIZE,
    )
    with torch.no_grad():  # a narrow posterior: the noise of a wide one hides what is to be learned
        vae.encoder.conv_out.conv.bias[LATENT_CHANNELS:] = -6.0
    return vae


def new_pipeline(vae: AutoencoderKLCogVideoX) -> CogVideoXPipeline:
    """Return the pipeline of an autoencoder with an untrained text encoder and transformer."""
    tokenizer = new_tokenizer()
    text = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    side = SIZE // 2 ** (len(vae.config.block_out_channels) - 1)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        time_embed_dim=64,
        text_embed_dim=TEXT_WIDTH,
        num_layers=4,
        sample_width=side,
        sample_height=side,
        sample_frames=FRAMES,
        patch_size=4,
        temporal_compression_ratio=vae.config.temporal_compression_ratio,
        max_text_seq_length=PROMPT_TOKENS,
    )
    scheduler = CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=1.0,
    )
    return CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )


def window(clips: np.ndarray) -> np.ndarray:
    """Return `WINDOW` frames of clips [B, 9, 32, 32, 3], the same ones of each."""
    first = int(torch.randint(FRAMES - WINDOW + 1, ()))
    return clips[:, first : first + WINDOW]


def build(
    folder: Path,
    seed: int = 0,
    autoencoder_steps: int = 1600,
    denoiser_rounds: Sequence[int] = (4000, 4000),
    copies: int = 12,
) -> None:
    """Train the generator and save it to `folder` in half precision, renamed when complete."""
    log = stopwatch()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    asked = np.concatenate([all_scenes()] * copies)
    clips = render(corrupt(asked, rng, WRONG), rng)
    log(f"rendered {len(clips)} clips")
    pipe = new_pipeline(new_autoencoder())
    train_autoencoder(pipe.vae, clips, autoencoder_steps, log, batch=8, peak=3e-3, part=window)
    mean, std = (part.transpose(1, 2) for part in encode(pipe.vae, clips))  # the transformer has frames first
    train_denoiser(
        pipe,
        pipe.transformer,
        lambda noisy, timesteps, embeds: pipe.transformer(noisy, embeds, timesteps).sample,
        (mean, std),
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
