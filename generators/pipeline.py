"""What every family shares: a diffusers pipeline, loaded, conditioned, sampled and saved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from generators.base import Conditioning, Samples
from generators.loading import device_name, dtype_of, load_pipeline, precision
from generators.schedules import RectifiedFlow, Schedule, VariancePreserving, flow_shift, prediction_type


class PipelineGenerator:
    """A `Generator` over one diffusers pipeline class. A family adds `denoise` and what is particular to it.

    `config` has the fields of a run's generator settings: family, path, dtype, device, steps, guidance_scale,
    height, width, frames, options. With `denoiser_only` the VAE and the text encoders stay on disk, which is
    all that training needs.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    denoiser: ClassVar[str] = "transformer"  # component that is trained
    modality: ClassVar[str] = "image"
    frame_rate: float = 8.0  # of clips: what the family was trained at, frames a second
    embeddings: ClassVar[tuple[str, ...]] = ("prompt_embeds",)  # conditioning that the pipeline itself takes
    conditioners: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    overrides: ClassVar[dict[str, Any]] = {}  # of every from_pretrained, e.g. components never loaded
    float32_components: ClassVar[tuple[str, ...]] = ()  # components that must not be run in half precision
    prediction_types: ClassVar[tuple[str, ...]] = ("flow",)
    lora_targets: ClassVar[list[str]] = ["to_k", "to_q", "to_v", "to_out.0"]
    options: ClassVar[tuple[str, ...]] = ("negative_prompt", "vae_slicing", "vae_tiling")

    def __init__(self, config: Any, denoiser_only: bool = False):
        unknown = sorted(set(config.options) - set(self.options))
        if unknown:
            raise ValueError(
                f"generator.options.{unknown[0]}: unknown; {config.family} knows {', '.join(self.options)}"
            )
        self.config = config
        self.family = config.family
        self.device = torch.device(device_name(config.device))
        self.dtype = dtype_of(config.dtype)
        absent = (*self.conditioners, "vae") if denoiser_only else ()
        self.pipe = load_pipeline(self.pipeline_class, config, self._dtypes, self.overrides, absent)
        self.pipe.to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        self._check_size()
        self.schedule = self._schedule()
        if not denoiser_only:
            if config.options.get("vae_slicing"):
                self.pipe.vae.enable_slicing()
            if config.options.get("vae_tiling"):
                self.pipe.vae.enable_tiling()

    # ---- the parts ----

    @property
    def model(self) -> nn.Module:
        return getattr(self.pipe, self.denoiser)

    @property
    def guided(self) -> bool:
        """Whether sampling runs the unconditional branch beside the conditional one."""
        return self.config.guidance_scale > 1

    def predict(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, model: nn.Module | None = None
    ) -> Tensor:
        dtype = precision(self.model)
        return self.denoise(
            self.model if model is None else model,
            latents.to(dtype),
            timesteps,
            conditioning.to(latents.device, dtype),
        )

    def denoise(
        self, model: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """`predict` of `model`, everything on one device and in its precision."""
        raise NotImplementedError

    def from_pipeline(self, latents: Tensor) -> Tensor:
        """Latents as this generator holds them, from the layout in which the pipeline samples."""
        return latents

    def _schedule(self) -> Schedule:
        scheduler = self.pipe.scheduler
        kind = prediction_type(scheduler)
        if kind not in self.prediction_types:
            raise ValueError(
                f"{self.config.path}: its scheduler {type(scheduler).__name__} predicts {kind}, "
                f"{self.family} expects {' or '.join(self.prediction_types)}"
            )
        if kind == "flow":
            shift = flow_shift(scheduler.config, self._sequence_length())
            return RectifiedFlow(shift, scheduler.config.num_train_timesteps)
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"{self.config.path}: its scheduler {type(scheduler).__name__} has no alphas_cumprod"
            )
        return VariancePreserving(scheduler.alphas_cumprod.float().cpu(), kind)

    # ---- conditioning ----

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        # One at a time: a matrix product's low bits depend on its batch, and a prompt must not on its
        # neighbours.
        distinct = list(dict.fromkeys(prompts))
        encoded = Conditioning.cat([self._encode_prompt(prompt) for prompt in distinct]).to("cpu")
        place = {prompt: row for row, prompt in enumerate(distinct)}
        return encoded.rows([place[prompt] for prompt in prompts])

    def _encode_prompt(self, prompt: str) -> Conditioning:
        """The row of one prompt, on the generator's device."""
        raise NotImplementedError

    @cached_property
    @torch.no_grad()
    def unconditional(self) -> Conditioning:
        """The row that guidance steers away from: `options.negative_prompt`, by default the empty prompt."""
        return self._encode_prompt(self.config.options.get("negative_prompt", ""))

    # ---- sampling ----

    @torch.no_grad()
    def sample(
        self, conditioning: Conditioning, seeds: Sequence[int], batch_size: int | None = None
    ) -> Samples:
        if len(conditioning) != len(seeds):
            raise ValueError(f"{len(conditioning)} rows of conditioning for {len(seeds)} seeds")
        batch_size = batch_size or len(seeds)
        latents, media = [], []
        training = self.model.training
        self.model.eval()
        for start in range(0, len(seeds), batch_size):
            rows = list(range(start, min(start + batch_size, len(seeds))))
            filled = rows + rows[-1:] * (batch_size - len(rows))
            batch, outputs = self._sample_batch(conditioning.rows(filled), [seeds[row] for row in filled])
            latents.append(batch[: len(rows)].cpu())
            media += outputs[: len(rows)]
        self.model.train(training)
        return Samples(torch.cat(latents), media, list(seeds))

    def _sample_batch(self, conditioning: Conditioning, seeds: list[int]) -> tuple[Tensor, list]:
        kept: dict[str, Tensor] = {}

        def keep(pipe, step, timestep, tensors):
            kept.update(tensors)
            return {}

        embeddings = {name: conditioning[name].to(self.device, self.dtype) for name in self.embeddings}
        if self.guided:
            for name in self.embeddings:
                row = self.unconditional[name].to(self.device, self.dtype)
                embeddings[f"negative_{name}"] = row.expand(len(seeds), *row.shape[1:])
        output = self.pipe(
            **embeddings,
            **self._size(),
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=keep,
            output_type="pil" if self.modality == "image" else "np",
        )
        latents = self.from_pipeline(kept["latents"])
        if self.modality == "image":
            return latents, output.images
        return latents, [(clip * 255).round().astype("uint8") for clip in output.frames]

    # ---- foreign media ----

    @torch.no_grad()
    def encode(self, media: Sequence[Image.Image] | Sequence[np.ndarray]) -> Tensor:
        """Latents [B, ...] of pictures, or of clips (uint8 [T, H, W, 3]): the mean of the VAE's posterior.

        Each is scaled and cropped to the generator's size; of a clip the first frames are taken, and one that
        has too few is a ValueError. One at a time, in float32.
        """
        vae = self.pipe.vae
        dtype = vae.dtype
        nn.Module.to(
            vae, torch.float32
        )  # not diffusers' own `to`, which warns of modules that are in float32
        latents = [
            self.normalise(vae.encode(self._pixels(medium)).latent_dist.mode()).cpu() for medium in media
        ]
        nn.Module.to(vae, dtype)
        return torch.cat(latents)

    def normalise(self, latents: Tensor) -> Tensor:
        """From the VAE's scale and layout to the denoiser's."""
        config = self.pipe.vae.config
        return (latents - (config.shift_factor or 0)) * config.scaling_factor

    def _pixels(self, medium: Image.Image | np.ndarray) -> Tensor:
        """[1, 3, H, W] or [1, 3, T, H, W] in [-1, 1]."""
        size = self._size()
        frames = [medium]
        if self.modality == "video":
            wanted = size.pop("num_frames")
            if len(medium) < wanted:
                raise ValueError(f"a clip of {len(medium)} frames, but generator.frames={wanted}")
            frames = [Image.fromarray(frame) for frame in medium[:wanted]]
        processor = getattr(self.pipe, f"{self.modality}_processor")
        pixels = processor.preprocess(frames, **size, resize_mode="crop").to(self.device)
        return pixels if self.modality == "image" else pixels.transpose(0, 1)[None]

    # ---- sizes ----

    @property
    def default_size(self) -> dict[str, int]:
        """height, width (and num_frames) that the model itself was made for, in pixels."""
        size = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return {"height": size, "width": size}

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of it, in pixels."""
        return self.pipe.vae_scale_factor

    @property
    def size_limit(self) -> int | None:
        """Height and width must not be greater, in pixels; None where nothing is."""
        return None

    @property
    def frames_multiple(self) -> int:
        """Clips have a multiple of it plus one frames."""
        return self.pipe.vae_scale_factor_temporal

    def _size(self) -> dict[str, int]:
        chosen = {"height": self.config.height, "width": self.config.width, "num_frames": self.config.frames}
        return {name: chosen[name] or default for name, default in self.default_size.items()}

    @property
    def frame_count(self) -> int:
        """Frames of a sample; 1 for a picture."""
        return self._size().get("num_frames", 1)

    def _sequence_length(self) -> int:
        """Image tokens of a picture, on which some schedules depend."""
        size = self._size()
        return (size["height"] // self.size_multiple) * (size["width"] // self.size_multiple)

    def _check_size(self) -> None:
        if self.config.frames is not None and self.modality == "image":
            raise ValueError(f"generator.frames={self.config.frames}: {self.family} makes single pictures")
        for name, value in self._size().items():
            step, first = (self.size_multiple, 0) if name != "num_frames" else (self.frames_multiple, 1)
            limit = self.size_limit if name != "num_frames" else None
            nearest = max(round((value - first) / step) * step + first, first or step)
            nearest = min(nearest, limit or nearest)
            if value != nearest:
                rule = f"a multiple of {step}" + (f" plus {first}" if first else "")
                rule += f", at most {limit}" if limit else ""
                key = "frames" if name == "num_frames" else name
                raise ValueError(
                    f"generator.{key}={value}: {self.family} needs {rule}; the nearest is {nearest}"
                )

    # ---- on disk ----

    def save(self, folder: str | Path, model: nn.Module | None = None) -> None:
        """Write the pipeline to `folder` with `model` as its denoiser, or the present one."""
        components = {self.denoiser: self.model if model is None else model}
        left_out = (name for name, value in self.overrides.items() if value is None)
        if not all((Path(self.config.path) / name).is_dir() for name in left_out):
            components |= self.overrides  # what was never fetched, such as a safety checker
        whole = self.pipeline_class.from_pretrained(self.config.path, dtype=self._dtypes, **components)
        whole.save_pretrained(folder)

    @property
    def _dtypes(self) -> dict[str, torch.dtype]:
        return {"default": self.dtype} | dict.fromkeys(self.float32_components, torch.float32)
