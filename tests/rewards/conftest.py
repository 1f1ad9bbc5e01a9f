"""Fixtures for tests of rewards."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_vlms import make_model


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """Folder of a tiny random model of a family; made once a session."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            make_model(family, made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Three different noisy pictures of one size, and one of another."""
    rng = np.random.default_rng(0)
    sizes = [(48, 40)] * 3 + [(40, 64)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
