"""Trains the bundled video generator from nothing: an autoencoder, then a T5 and a CogVideoX transformer.

Seeded. The captioned clips that the transformer learns from are wrong or defective at the rates of `WRONG`,
so that the base model is imperfect in every dimension, as models trained on the web are.
"""

import argparse
import string
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from quickstart.train_generator import montage, reconstruction_loss
from quickstart.video.world import FRAMES, SIZE, all_scenes, corrupt, prompt_of, render

WRONG = {  # share of the captioned clips in which the caption is wrong, or the clip defective
    "shape": 0.2,
    "colour": 0.2,
    "direction": 0.2,
    "speed": 0.2,
    "background": 0.15,
    "jitter": 0.25,
    "freeze": 0.25,
    "fade": 0.25,
    "recolour": 0.2,
    "reshape": 0.2,
}
UNCAPTIONED = 0.1  # share of captions left out, for classifier-free guidance
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
    return T5Tokenizer(vocab=special + pieces, extra_ids=0)


def new_autoencoder() -> AutoencoderKLCogVideoX:
    """Return an untrained autoencoder: 9 frames of 32x32 pixels to latents [4, 9, 8, 8]."""
    channels = (8, 16, 32)
    return AutoencoderKLCogVideoX(
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


def to_pixels(clips: np.ndarray) -> Tensor:
    """Return pixels [B, 3, T, H, W] in [-1, 1] of uint8 clips [B, T, H, W, 3]."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def frames_of(clips: Tensor) -> Tensor:
    """Return the frames [B * T, 3, H, W] of clips [B, 3, T, H, W]."""
    return clips.transpose(1, 2).flatten(0, 1)


def train_autoencoder(
    vae: AutoencoderKLCogVideoX,
    clips: np.ndarray,
    steps: int,
    log: Callable[[str], None],
    batch: int = 8,
    peak: float = 3e-3,
) -> None:
    """Train in place on uint8 clips [B, 9, 32, 32, 3]; sets the scaling factor to unit variance."""
    with torch.no_grad():  # a narrow posterior: the noise of a wide one hides what is to be learned
        vae.encoder.conv_out.conv.bias[LATENT_CHANNELS:] = -6.0
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.08, final_div_factor=20)
    for step in range(steps):
        rows, first = torch.randint(len(clips), (batch,)), int(torch.randint(FRAMES - WINDOW + 1, ()))
        pixels = to_pixels(clips[rows.numpy(), first : first + WINDOW])
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(frames_of(decoded), frames_of(pixels)) + 1e-5 * divergence
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            log(f"autoencoder step {step} loss {loss.item():.4f}")
    mean, std = encode(vae, clips[:1024])
    vae.register_to_config(scaling_factor=float(1 / (mean.var() + (std**2).mean()).sqrt()))


@torch.no_grad()
def encode(vae: AutoencoderKLCogVideoX, clips: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the posterior's mean and standard deviation [B, 4, 9, 8, 8], unscaled, of uint8 clips."""
    posteriors = [
        vae.encode(to_pixels(part)).latent_dist for part in np.array_split(clips, max(1, len(clips) // 32))
    ]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


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


def train_denoiser(
    pipe: CogVideoXPipeline,
    latents: tuple[Tensor, Tensor],
    captions: list[str],
    steps: int,
    log: Callable[[str], None],
    batch: int = 32,
    peak: float = 1.5e-3,
) -> None:
    """Train text encoder and transformer in place to predict v; leaves their moving average."""
    transformer, text_encoder, scheduler = pipe.transformer, pipe.text_encoder, pipe.scheduler
    mean, std = (part.transpose(1, 2) * pipe.vae.config.scaling_factor for part in latents)
    tokens = pipe.tokenizer(
        [*captions, ""], padding="max_length", max_length=PROMPT_TOKENS, return_tensors="pt"
    ).input_ids
    weights = [*transformer.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.06, final_div_factor=50)
    average = EMAModel(weights, decay=0.997)
    for step in range(steps):
        rows = torch.randint(len(captions), (batch,))
        x0 = mean[rows] + std[rows] * torch.randn_like(mean[rows])
        noise, timesteps = torch.randn_like(x0), torch.randint(scheduler.config.num_train_timesteps, (batch,))
        rows[torch.rand(batch) < UNCAPTIONED] = len(captions)
        predicted = transformer(
            hidden_states=scheduler.add_noise(x0, noise, timesteps),
            encoder_hidden_states=text_encoder(tokens[rows]).last_hidden_state,
            timestep=timesteps,
            return_dict=False,
        )[0]
        loss = (predicted - scheduler.get_velocity(x0, noise, timesteps)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.step(weights)
        if step % 100 == 0 or step == steps - 1:
            log(f"denoiser step {step} loss {loss.item():.4f}")
    average.copy_to(weights)


def sample(
    pipe: CogVideoXPipeline, prompts: list[str], seed: int, steps: int = 12, guidance_scale: float = 1.0
) -> np.ndarray:
    """Return a clip uint8 [B, 9, 32, 32, 3] of each prompt."""
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(seed)
    settings = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "max_sequence_length": PROMPT_TOKENS,
        "output_type": "np",
    }
    parts = [
        pipe(prompts[i : i + 32], generator=noise, **settings).frames for i in range(0, len(prompts), 32)
    ]
    return (np.concatenate(parts) * 255).round().astype(np.uint8)


def filmstrips(clips: np.ndarray) -> Image.Image:
    """Return clips [B, T, H, W, 3] one below the other, each frame beside the one before."""
    return montage(clips.reshape(-1, *clips.shape[2:]), columns=clips.shape[1], scale=2)


def build(
    folder: Path, seed: int = 0, autoencoder_steps: int = 2000, denoiser_steps: int = 5000, copies: int = 12
) -> None:
    """Train the generator and save it to `folder` in half precision, renamed when complete."""
    started = time.monotonic()

    def log(line: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {line}", flush=True)

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    asked = np.concatenate([all_scenes()] * copies)
    clips = render(corrupt(asked, rng, WRONG), rng)
    log(f"rendered {len(clips)} clips")
    vae = new_autoencoder()
    train_autoencoder(vae, clips, autoencoder_steps, log)
    pipe = new_pipeline(vae)
    captions = [prompt_of(scene) for scene in asked]
    train_denoiser(pipe, encode(vae, clips), captions, denoiser_steps, log)
    partial = folder.with_name(folder.name + ".partial")
    pipe.to(torch.float16).save_pretrained(partial)
    partial.rename(folder)
    log(f"saved {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build(arguments.folder, arguments.seed)
