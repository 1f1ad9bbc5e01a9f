"""From settings to a generator: one `match`, each family imported in its own branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generators.pipeline import PipelineGenerator

FAMILIES = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "cogvideox", "wan")


def build_generator(config: Any, denoiser_only: bool = False) -> PipelineGenerator:
    """The generator that `config` (family, path, dtype, device, steps, guidance_scale, height, width, frames,
    options) describes, on its device.

    `denoiser_only` leaves VAE and text encoders on disk: enough for `predict`, training and `save`.
    ValueError or FileNotFoundError, one line each, for what cannot be built.
    """
    return family_class(config.family)(config, denoiser_only)


def family_class(family: str) -> type[PipelineGenerator]:
    """The class of a family. ValueError, with those that are known, for another."""
    match family:
        case "stable_diffusion":
            from generators.stable_diffusion import StableDiffusion as Family
        case "stable_diffusion_xl":
            from generators.stable_diffusion import StableDiffusionXL as Family
        case "stable_diffusion_3":
            from generators.stable_diffusion_3 import StableDiffusion3 as Family
        case "flux":
            from generators.flux import Flux as Family
        case "cogvideox":
            from generators.cogvideox import CogVideoX as Family
        case "wan":
            from generators.wan import Wan as Family
        case _:
            raise ValueError(f"generator.family={family}: not one of {', '.join(FAMILIES)}")
    return Family
