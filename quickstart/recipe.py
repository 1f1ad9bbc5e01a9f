"""What the recipes of the bundled generators share: training an autoencoder and a denoiser, saving.

A batch of media is uint8: pictures [B, H, W, 3] or clips [B, T, H, W, 3]. Pixels lie in [-1, 1].
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

Log = Callable[[str], None]
UNCAPTIONED = 0.1  # share of captions left out, for classifier-free guidance


def stopwatch() -> Log:
    """Return what prints a line after the seconds that have passed since this call."""
    started = time.monotonic()

    def log(line: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {line}", flush=True)

    return log


def to_pixels(media: np.ndarray) -> Tensor:
    """Return pixels [B, 3, ..., H, W] of media [B, ..., H, W, 3]."""
    return torch.from_numpy(media).movedim(-1, 1).float() / 127.5 - 1


def _pictures(pixels: Tensor) -> Tensor:
    """Return the frames [B * T, 3, H, W] of clips [B, 3, T, H, W]; pictures as they are."""
    return pixels.transpose(1, 2).flatten(0, 1) if pixels.dim() == 5 else pixels


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


def _descend(
    name: str,
    loss_at: Callable[[int], Tensor],
    weights: list[nn.Parameter],
    steps: int,
    log: Log,
    *,
    peak: float,
    decay: float,
    rise: float,
    fall: float,
    average: EMAModel | None = None,
) -> None:
    """Lower a loss by AdamW, whose rate rises to `peak` for a share of the steps, then falls to `1 / fall` of
    what it began with."""
    optimizer = torch.optim.AdamW(weights, lr=peak, betas=(0.9, 0.99), weight_decay=decay)
    schedule = OneCycleLR(optimizer, peak, total_steps=steps, pct_start=rise, final_div_factor=fall)
    for step in range(steps):
        loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if average is not None:
            average.step(weights)
        if step % 100 == 0 or step == steps - 1:
            log(f"{name} step {step} loss {loss.item():.4f}")


def train_autoencoder(
    vae: nn.Module,
    media: np.ndarray,
    steps: int,
    log: Log,
    *,
    batch: int,
    peak: float,
    part: Callable[[np.ndarray], np.ndarray] = lambda media: media,
) -> None:
    """Train in place on `part` of each batch of media; sets the scaling factor to unit variance."""

    def loss_at(_: int) -> Tensor:
        pixels = to_pixels(part(media[torch.randint(len(media), (batch,)).numpy()]))
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return reconstruction_loss(_pictures(decoded), _pictures(pixels)) + 1e-5 * divergence

    weights = list(vae.parameters())
    _descend("autoencoder", loss_at, weights, steps, log, peak=peak, decay=1e-4, rise=0.08, fall=20)
    mean, std = encode(vae, media[:2048])
    vae.register_to_config(scaling_factor=float(1 / (mean.var() + (std**2).mean()).sqrt()))


@torch.no_grad()
def encode(vae: nn.Module, media: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the posterior's mean and standard deviation, unscaled: [B, C, H, W] of pictures,
    [B, C, T, H, W] of clips."""
    parts = np.array_split(media, max(1, len(media) // 64))
    posteriors = [vae.encode(to_pixels(part)).latent_dist for part in parts]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


def train_denoiser(
    pipe: DiffusionPipeline,
    denoiser: nn.Module,
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    latents: tuple[Tensor, Tensor],
    captions: list[str],
    rounds: Sequence[int],
    log: Log,
    batch: int = 32,
) -> None:
    """Train text encoder and denoiser in place on the velocity (Salimans & Ho 2022, appendix D); leaves their
    moving average.

    The steps of each round have the whole schedule of rates and timesteps (warm restarts: Loshchilov & Hutter
    2017).

    `predict` says the velocity of noisy latents, timesteps [B] and text embeddings; `latents` are means and
    standard deviations as `encode` gives them, in the denoiser's layout.

    It is in the noisiest steps that a sample's place and shape are decided; an error in the noise, predicted
    instead, would hardly tell there. Training starts with those steps alone, where nothing but the prompt
    says what to draw, and takes in the others over its first quarter: so prompts are learned much sooner.
    """
    text_encoder, scheduler = pipe.text_encoder, pipe.scheduler
    mean, std = (part * pipe.vae.config.scaling_factor for part in latents)
    tokens = pipe.tokenizer([*captions, ""], padding="max_length", return_tensors="pt").input_ids
    weights = [*denoiser.parameters(), *text_encoder.parameters()]

    def loss_at(step: int, steps: int) -> Tensor:
        rows = torch.randint(len(captions), (batch,))
        x0 = mean[rows] + std[rows] * torch.randn_like(mean[rows])
        noise, count = torch.randn_like(x0), scheduler.config.num_train_timesteps
        timesteps = torch.randint(int(count * 0.9 * max(0.0, 1 - step / (steps / 4))), count, (batch,))
        rows[torch.rand(batch) < UNCAPTIONED] = len(captions)
        embeds = text_encoder(tokens[rows]).last_hidden_state
        predicted = predict(scheduler.add_noise(x0, noise, timesteps), timesteps, embeds)
        return (predicted - scheduler.get_velocity(x0, noise, timesteps)).square().mean()

    rates = {"peak": 1.5e-3, "decay": 1e-3, "rise": 0.06, "fall": 50}
    for steps in rounds:
        average = EMAModel(weights, decay=0.998)
        _descend("denoiser", partial(loss_at, steps=steps), weights, steps, log, average=average, **rates)
        average.copy_to(weights)


def montage(pictures: np.ndarray, columns: int, scale: int = 2) -> Image.Image:
    """Return pictures [B, H, W, 3] in rows of `columns`, enlarged; B is a multiple of `columns`."""
    count, height, width, _ = pictures.shape
    rows = pictures.reshape(count // columns, columns, height, width, 3).swapaxes(1, 2)
    sheet = Image.fromarray(rows.reshape(count // columns * height, columns * width, 3))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def save(pipe: DiffusionPipeline, folder: Path) -> None:
    """Save the pipeline in half precision, renamed when complete."""
    partial = folder.with_name(folder.name + ".partial")
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(memory_format=torch.contiguous_format)
    pipe.to(torch.float16).save_pretrained(partial)
    partial.rename(folder)
