"""Models and data sets from the hub's cache: what is there is used, at its commit, without a network."""

import io
import shutil
import socket

import datasets
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import generator_config

from generators.build import build_generator
from mpo.artifacts import resolve
from mpo.config import load
from mpo.pipeline import begin, bring
from mpo.store import Identities, read_table

KIND = "stable_diffusion"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Makes the folder of a repository's only commit in a cache of its own; nothing may go out."""
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: asked.append(words))

    def snapshot(kind: str, source=None):
        repository = tmp_path / "hub" / f"{kind}--somebody--tiny"
        folder = repository / "snapshots" / COMMIT
        if source:
            shutil.copytree(source, folder)
        folder.mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        return folder

    yield snapshot
    assert asked == []


def test_a_model_whose_weights_are_not_there_is_told_before_anything_is_made(cache, tiny_pipeline, tmp_path):
    snapshot = cache("models", tiny_pipeline(KIND))
    for weights in snapshot.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(FileNotFoundError) as error:
        Identities(tmp_path).of("somebody/tiny")
    assert f"no weights in the hub's cache {constants.HF_HUB_CACHE}" in str(error.value)
    assert Identities(tmp_path).of("somebody/tiny", now=False) == f"somebody/tiny@{COMMIT}"


@pytest.mark.parametrize("denoiser_only", [False, True])
def test_a_pipeline_in_the_cache_is_built_without_a_network(cache, tiny_pipeline, tmp_path, denoiser_only):
    snapshot = cache("models", tiny_pipeline(KIND))
    if denoiser_only:  # which downloads neither of them
        (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        (snapshot / "text_encoder" / "model.safetensors").unlink()
    generator = build_generator(generator_config(KIND, "somebody/tiny"), denoiser_only)
    for component in (generator.pipe.vae, generator.pipe.text_encoder):
        assert (component is None) == denoiser_only
    stored = load_file(snapshot / "unet" / "diffusion_pytorch_model.safetensors")
    found = generator.model.state_dict()
    assert found.keys() == stored.keys() and all(torch.equal(found[name], stored[name]) for name in stored)
    assert Identities(tmp_path).of("somebody/tiny") == f"somebody/tiny@{COMMIT}"


def test_pairs_from_the_hub_are_those_of_the_commit_that_the_run_is_known_by(
    cache, tiny_run, tmp_path, monkeypatch
):
    def png(shade):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (shade, 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    def load_dataset(path, revision=None, split=None):
        asked.append((path, revision, split))
        rows = {"prompt": ["a", "b"], "winner": [png(10), png(20)], "loser": [png(30), png(40)]}
        return datasets.Dataset.from_dict(rows)

    asked = []
    cache("datasets")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    run = resolve(load(tiny_run(tmp_path), ["pairs.from=somebody/tiny", "prompts.train=null"]))
    made = run.artifacts.rounds[0]
    assert made.candidates.inputs["data"] == f"somebody/tiny@{COMMIT}"
    bring(begin(run), made)
    assert asked == [("somebody/tiny", COMMIT, "train")]
    table = read_table(*made.candidates.shards("candidates"))
    shades = [Image.open(made.candidates.folder / row["media"]).getpixel((0, 0))[0] for row in table]
    assert [row["prompt"] for row in table] == ["a", "a", "b", "b"] and shades == [10, 30, 20, 40]
