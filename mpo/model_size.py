"""What a model is, from configs and safetensors headers alone: weights, samples and latents. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpo.activations import activations
from mpo.config import RunConfig
from mpo.store import hub_snapshot

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DENOISERS = ("unet", "transformer")
_UNLOADED = ("safety_checker", "image_encoder")  # components that no family loads
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_PIXEL = 2.0  # bytes of a PNG a pixel, for a generously detailed picture
_CLIP_PIXEL = 0.5  # bytes of an MP4 a pixel and frame: a third of what it has before it is coded, a bound


@dataclass(frozen=True)
class Family:
    """What no file of a model says, as the family's class in generators/ has it, which imports torch."""

    lora_targets: tuple[str, ...] = _ATTENTION
    guided: bool = True  # a guidance scale above 1 takes a second, unconditional row
    sample: Mapping[str, int] = field(default_factory=dict)  # its own size, named as in denoisers' configs


FAMILIES = {
    "stable_diffusion": Family(),
    "stable_diffusion_xl": Family(),
    "stable_diffusion_3": Family(tuple(f"attn.{name}" for name in _ATTENTION + _ADDED)),
    "flux": Family(_ATTENTION + _ADDED, guided=False, sample={"sample_size": 128}),
    "cogvideox": Family(),
    "wan": Family(sample={"sample_height": 60, "sample_width": 104, "sample_frames": 81}),
}


@dataclass(frozen=True)
class ModelSize:
    """What the headers and configs of a model folder say."""

    parameters: dict[str, int]  # by component; "." for a model without components; empty: not all are here
    adapted: int  # inputs plus outputs of the modules that get an adapter: LoRA parameters a rank
    sample_bytes: float | None  # of one sample on disk, picture or clip and float32 latents; None: not told
    prompt_bytes: int  # of one prompt's float32 conditioning
    activations: tuple[float, float] | None = None  # numbers kept of a row, without and with checkpointing

    def bytes(self, dtype: str, *components: str) -> int:
        """Weights of the components, or of all."""
        chosen = components or tuple(self.parameters)
        return sum(self.parameters.get(name, 0) for name in chosen) * DTYPE_BYTES[dtype]

    @property
    def denoiser(self) -> int:
        """Parameters of the denoiser; 0 where they are not here."""
        return sum(self.parameters.get(name, 0) for name in DENOISERS)


def lora_targets(config: RunConfig) -> tuple[str, ...]:
    """The ends of the names of the modules that get an adapter."""
    return tuple(config.train.lora.targets or FAMILIES[config.generator.family].lora_targets)


def read_size(path: str, config: RunConfig) -> ModelSize | None:
    """Sizes from a folder's headers, or from the local copy of a hub id; None where there is none.

    ValueError that names the file for one that is damaged, and for a LoRA target that no module has.
    """
    folder = _folder(path)
    if folder is None:
        return None
    parameters: dict[str, int] = {}
    denoising: dict[str, list[int]] = {}
    for file in _weight_files(folder):
        part = file.parent.relative_to(folder).as_posix()
        shapes = _shapes(file)
        parameters[part] = parameters.get(part, 0) + sum(math.prod(shape) for shape in shapes.values())
        denoising |= shapes if part in DENOISERS else {}
    adapted = _adapted(denoising, config)
    text = [_config(folder / name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    prompt = sum(
        4 * c.get("max_position_embeddings", 512) * c.get("hidden_size", c.get("d_model", 0)) for c in text
    )
    vae, denoiser = _vae_and_denoiser(folder)
    size = sample_size(vae, denoiser, config)
    kept = size and activations(denoiser, latent_size(vae, size))
    return ModelSize(parameters, adapted, size and sample_bytes(vae, denoiser, size), prompt, kept)


def _adapted(shapes: Mapping[str, list[int]], config: RunConfig) -> int:
    """Inputs plus outputs of the denoiser's modules that get an adapter."""
    asked = config.train.lora.targets if shapes and config.train.mode == "lora" else None
    layers = {
        f".{name}": shape for name, shape in shapes.items() if len(shape) > 1
    }  # linear ones, convolutions
    for target in asked or ():
        if not any(name.endswith(f".{target}.weight") for name in layers):
            raise ValueError(
                f"train.lora.targets: {target} matches no module of {config.generator.path} that takes an "
                "adapter"
            )
    ends = tuple(f".{target}.weight" for target in lora_targets(config))
    return sum(shape[0] + math.prod(shape[1:]) for name, shape in layers.items() if name.endswith(ends))


# ---- samples and latents, each as (frames, height, width) ----


def own_sample_size(config: RunConfig) -> tuple[int, int, int] | None:
    """Of a sample of the run's generator, in frames and pixels; None where nothing here says."""
    folder = _folder(config.generator.path)
    return sample_size(*(_vae_and_denoiser(folder) if folder else ({}, {})), config)


def sample_size(
    vae: Mapping[str, Any], denoiser: Mapping[str, Any], config: RunConfig
) -> tuple[int, int, int] | None:
    """Of a sample, in frames and pixels: what the config sets, else the model's own; None: neither says."""
    chosen, scale = config.generator, latent_scale(vae) if vae else 0
    own = {**FAMILIES[chosen.family].sample, **denoiser}
    side = own.get("sample_size")
    high, wide = side if isinstance(side, list) else (side, side)
    height = chosen.height or scale * (own.get("sample_height") or high or 0)
    width = chosen.width or scale * (own.get("sample_width") or wide or 0)
    return (chosen.frames or own.get("sample_frames") or 1, height, width) if height and width else None


def latent_size(vae: Mapping[str, Any], size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Of the latent of a sample of `size`."""
    frames, height, width = size
    scale = latent_scale(vae)
    return (frames - 1) // frame_scale(vae) + 1, height // scale, width // scale


def latent_scale(vae: Mapping[str, Any]) -> int:
    """Pixels along the side of one place of the latent."""
    return 2 ** (len(vae.get("dim_mult") or vae.get("block_out_channels") or [0]) - 1)


def frame_scale(vae: Mapping[str, Any]) -> int:
    """Frames of a clip in one of its latent after the first; 4 where the config has none, as in diffusers."""
    return int(vae.get("temporal_compression_ratio") or vae.get("scale_factor_temporal") or 4)


def sample_bytes(
    vae: Mapping[str, Any], denoiser: Mapping[str, Any], size: tuple[int, int, int]
) -> float | None:
    """Of a sample on disk, picture or clip and float32 latents; None for unknown channels."""
    channels = vae.get("z_dim") or vae.get("latent_channels") or denoiser.get("in_channels")
    media = math.prod(size) * (_PIXEL if size[0] == 1 else _CLIP_PIXEL)
    return media + 4 * channels * math.prod(latent_size(vae, size)) if channels else None


# ---- files ----


def _folder(path: str) -> Path | None:
    """Where a model lies on this machine: the folder itself, or the local copy of a hub id."""
    return Path(path) if Path(path).is_dir() else hub_snapshot(path, online=False)


def _weight_files(folder: Path) -> list[Path]:
    """The files that are loaded: of a pipeline those of its components, of another model its own; none where
    one that an index names is not here."""
    depth = "*/" if (folder / "model_index.json").is_file() else ""
    for index in folder.glob(f"{depth}*.safetensors.index.json"):
        if not all((index.parent / name).is_file() for name in set(_json(index)["weight_map"].values())):
            return []
    variants = (".fp16", ".bf16", ".non_ema")  # second copies of the same component
    return [
        file
        for file in folder.glob(f"{depth}*.safetensors")
        if not any(variant in file.name for variant in variants) and file.parent.name not in _UNLOADED
    ]


def _shapes(file: Path) -> dict[str, list[int]]:
    """Name -> shape of each tensor. ValueError for a file without a whole header, or without all its data."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, size)))
    except ValueError:
        header, length = {}, size
    header.pop("__metadata__", None)
    if size < 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0):
        raise ValueError(f"{file}: damaged or copied in part, no whole safetensors file; fetch it again")
    return {name: entry["shape"] for name, entry in header.items()}


def _vae_and_denoiser(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    denoiser = next((_config(folder / name) for name in DENOISERS if (folder / name).is_dir()), {})
    return _config(folder / "vae"), denoiser


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return _json(file) if file.is_file() else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
