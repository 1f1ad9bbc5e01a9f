"""Fixtures that several folders of tests share."""

from __future__ import annotations

import pytest
from tiny_pipelines import save_pipeline


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    """Folder of the tiny random pipeline of a kind, e.g. `tiny_pipeline("stable_diffusion")`; saved once."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(kind: str):
        return root / kind if (root / kind).exists() else save_pipeline(kind, root / kind)

    return folder
