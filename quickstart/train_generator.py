"""Trains the bundled generator from nothing: an autoencoder, then a text encoder and UNet. Seeded.

The captioned renders that the UNet learns from are wrong or defective at the rates of `WRONG`, so that
the base model is imperfect in every dimension, as models trained on the web are.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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
UNCAPTIONED = 0.1  # share of captions left out, for classifier-free guidance
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
    """Return the untrained pipeline: 64x64 pixels, 8x8 latents, 3.2 M parameters."""
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


def to_pixels(pictures: np.ndarray) -> Tensor:
    """Return pixels [B, 3, 64, 64] in [-1, 1] of uint8 pictures [B, 64, 64, 3]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Return the mean error of decoded pixels [B, 3, H, W].

    Squares teach colours early and magnitudes fine differences late; what differs from the picture's median
    colour, the object and the specks, counts more; errors between neighbours keep edges sharp.
    """
    median = pixels.flatten(2).median(dim=2).values[..., None, None]
    weight = 1 + 3 * ((pixels - median).abs().amax(dim=1, keepdim=True) > 0.15)
    error = decoded - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return (weight * (4 * error**2 + error.abs())).mean() + 0.5 * edges


def train_autoencoder(
    vae: AutoencoderKL, pictures: np.ndarray, steps: int, log: Callable[[str], None], batch: int = 16
) -> None:
    """Train in place on uint8 pictures [B, 64, 64, 3]; sets the scaling factor to unit variance."""
    with (
        torch.no_grad()
    ):  # a posterior narrow from the start: the noise of a wide one hides what is to be learned
        vae.quant_conv.bias[LATENT_CHANNELS:] = -6.0
    vae.to(memory_format=torch.channels_last)  # faster on CPU
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.08, final_div_factor=20)
    for step in range(steps):
        pixels = to_pixels(pictures[torch.randint(len(pictures), (batch,)).numpy()])
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(decoded, pixels) + 1e-5 * divergence
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            log(f"autoencoder step {step} loss {loss.item():.4f}")
    mean, std = encode(vae, pictures[:2048])
    vae.register_to_config(scaling_factor=float(1 / (mean.var() + (std**2).mean()).sqrt()))


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the posterior's mean and standard deviation [B, C, 8, 8], unscaled, of uint8 pictures."""
    posteriors = [
        vae.encode(to_pixels(part)).latent_dist for part in np.array_split(pictures, len(pictures) // 64)
    ]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


def train_denoiser(
    pipe: StableDiffusionPipeline,
    latents: tuple[Tensor, Tensor],
    captions: list[str],
    steps: int,
    log: Callable[[str], None],
    batch: int = 32,
) -> None:
    """Train text encoder and UNet in place on the velocity (Salimans & Ho 2022, appendix D); leaves their
    moving average.

    It is in the noisiest steps that a sample's place and shape are decided; an error in the noise, predicted
    instead, would hardly tell there. Training starts with those steps alone, where nothing but the prompt
    says what to draw, and takes in the others over its first quarter: so prompts are learned much sooner.
    """
    unet, text_encoder, scheduler = pipe.unet, pipe.text_encoder, pipe.scheduler
    unet.to(memory_format=torch.channels_last)
    mean, std = (part * pipe.vae.config.scaling_factor for part in latents)
    tokens = pipe.tokenizer([*captions, ""], padding="max_length", return_tensors="pt").input_ids
    weights = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1.5e-3, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.06, final_div_factor=50)
    average = EMAModel(weights, decay=0.998)
    for step in range(steps):
        rows = torch.randint(len(captions), (batch,))
        x0 = mean[rows] + std[rows] * torch.randn_like(mean[rows])
        noise, count = torch.randn_like(x0), scheduler.config.num_train_timesteps
        timesteps = torch.randint(int(count * 0.9 * max(0.0, 1 - step / (steps / 4))), count, (batch,))
        rows[torch.rand(batch) < UNCAPTIONED] = len(captions)
        embeds = text_encoder(tokens[rows]).last_hidden_state
        predicted = unet(scheduler.add_noise(x0, noise, timesteps), timesteps, embeds).sample
        loss = (predicted - scheduler.get_velocity(x0, noise, timesteps)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.step(weights)
        if step % 200 == 0 or step == steps - 1:
            log(f"denoiser step {step} loss {loss.item():.4f}")
    average.copy_to(weights)


def sample(
    pipe: StableDiffusionPipeline, prompts: list[str], seed: int, steps: int = 12, guidance_scale: float = 1.0
) -> np.ndarray:
    """Return a picture uint8 [B, 64, 64, 3] of each prompt."""
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(seed)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "np"}
    parts = [
        pipe(prompts[i : i + 64], generator=noise, **settings).images for i in range(0, len(prompts), 64)
    ]
    return (np.concatenate(parts) * 255).round().astype(np.uint8)


def montage(pictures: np.ndarray, columns: int, scale: int = 2) -> Image.Image:
    """Return pictures [B, H, W, 3] in rows of `columns`, enlarged; B is a multiple of `columns`."""
    count, height, width, _ = pictures.shape
    rows = pictures.reshape(count // columns, columns, height, width, 3).swapaxes(1, 2)
    sheet = Image.fromarray(rows.reshape(count // columns * height, columns * width, 3))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def build(folder: Path, seed: int = 0, autoencoder_steps: int = 2200, denoiser_steps: int = 7200) -> None:
    """Train the generator and save it to `folder` in half precision, renamed when complete."""
    started = time.monotonic()

    def log(line: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {line}", flush=True)

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    asked = np.concatenate([all_scenes()] * 20)
    pictures = render(corrupt(asked, rng, WRONG), rng)
    log(f"rendered {len(pictures)} pictures of {len(NAMES)} attributes")
    pipe = new_pipeline()
    train_autoencoder(pipe.vae, pictures, autoencoder_steps, log)
    captions = [prompt_of(scene) for scene in asked]
    train_denoiser(pipe, encode(pipe.vae, pictures), captions, denoiser_steps, log)
    partial = folder.with_name(folder.name + ".partial")
    for model in (pipe.vae, pipe.unet):
        model.to(memory_format=torch.contiguous_format)
    pipe.to(torch.float16).save_pretrained(partial)
    partial.rename(folder)
    log(f"saved {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build(arguments.folder, arguments.seed)
