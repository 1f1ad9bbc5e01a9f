"""The recorded numbers of the CogVLM2 reference code, and the models and media that they belong to."""

from functools import cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from rewards.judges.cogvlm2 import CogVLM2Judge
from rewards.media import Media, load_media

FOLDER = Path(__file__).parents[1] / "golden" / "cogvlm2"
ATOL = 2e-4  # float noise is below 4e-5, mistakes are above 2.5e-3


@cache
def recorded(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


@cache
def judge(kind: str, dtype: str = "float32") -> CogVLM2Judge:
    return CogVLM2Judge.load(FOLDER / kind, dtype=dtype, device="cpu")


def picture() -> Media:
    return load_media(Image.fromarray(recorded("image")["raw_hwc_uint8"].numpy()))


def clip(frames: int = 24) -> Media:
    """The recorded clip of 24 frames, or its beginning."""
    return load_media(recorded("video")["clip_raw_cthw_uint8"].permute(1, 2, 3, 0)[:frames].numpy())


def asked(kind: str, name: str = "checklist") -> list[str]:
    """The recorded questions as text."""
    decode = judge(kind).processor.tokenizer.decode
    return [decode(row[row >= 0].tolist()) for row in recorded(kind)[name]]


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(found.float(), expected.float(), atol=atol, rtol=0)
