"""What a generator is to the rest: prompts in, samples with their latents out, and the denoiser's prediction.

`C H W F` are channels, height, width and frames of a latent, `B` a batch. A family may order them its own way
(CogVideoX puts frames first); nothing outside its file looks at more than the batch dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from generators.schedules import Schedule


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told beside the latents: named tensors, batch first: `prompt_embeds` [B, L, D]"""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def rows(self, index: Sequence[int] | Tensor) -> Conditioning:
        """The rows `index` (in that order, repeats allowed) as a batch of their own."""
        index = torch.as_tensor(index, dtype=torch.long)
        return Conditioning({name: tensor[index] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Moved to `device`; floating point tensors also cast to `dtype`."""
        return Conditioning(
            {
                name: tensor.to(device, dtype if tensor.is_floating_point() else None)
                for name, tensor in self.tensors.items()
            }
        )

    @staticmethod
    def cat(batches: Sequence[Conditioning]) -> Conditioning:
        """All rows of the batches, in order; each batch has the same names."""
        return Conditioning(
            {name: torch.cat([batch[name] for batch in batches]) for name in batches[0].tensors}
        )


@dataclass(frozen=True)
class Samples:
    """What `Generator.sample` returns, row i from `seeds[i]`."""

    latents: Tensor  # [B, ...] as the denoiser takes them, before the VAE decodes them
    media: list[Image.Image] | list[np.ndarray]  # RGB pictures, or clips as uint8 [T, H, W, 3]
    seeds: list[int]


class Generator(Protocol):
    """A diffusion model with the parts around it. Knows no reward and no preference."""

    family: str
    modality: str  # "image" or "video"
    frame_rate: float  # of its clips, frames a second
    frame_count: int  # of a sample; 1 for a picture
    model: nn.Module  # the denoiser, the only part that is trained
    schedule: Schedule
    lora_targets: list[str]

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """One row a prompt, each distinct one encoded once. A row does not depend on the other prompts."""

    def sample(
        self, conditioning: Conditioning, seeds: Sequence[int], batch_size: int | None = None
    ) -> Samples:
        """One sample a row of `conditioning`, row i from `seeds[i]` alone.

        The denoiser always sees `batch_size` rows (default: all), the last batch filled up and the filling
        dropped, so that on one machine a sample depends neither on its neighbours nor on how many there are.
        """

    def encode(self, media: Sequence) -> Tensor:
        """Latents [B, ...] of pictures or clips (uint8 [T, H, W, 3]) that were not sampled here."""

    def predict(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, model: nn.Module | None = None
    ) -> Tensor:
        """The denoiser's output [B, ...] at `latents` x_t and `timesteps` [B], in the schedule's
        parametrisation.

        `model` stands in for the denoiser: the same module wrapped for several processes, or a reference
        copy.
        """

    def save(self, folder: str | Path, model: nn.Module | None = None) -> None:
        """Write a folder for `DiffusionPipeline.from_pretrained`, with the current denoiser or `model`."""
