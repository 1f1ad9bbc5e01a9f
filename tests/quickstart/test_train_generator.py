from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from quickstart import oracle, recipe, train_generator, world

WEIGHTS = Path(train_generator.__file__).parent / "weights" / "generator"


def test_tokenizer_makes_a_token_of_each_word_and_takes_any_text():
    tokenizer = train_generator.new_tokenizer()
    for prompt in map(world.prompt_of, world.all_scenes()):
        assert tokenizer.tokenize(prompt) == [f"{word}</w>" for word in prompt.split()]
    odd = tokenizer('"quotes"\n\U0001f408 ' * 200, padding="max_length", truncation=True).input_ids
    assert len(odd) == train_generator.PROMPT_TOKENS
    assert len(set(odd)) > 4  # spelt in bytes, not all unknown


def test_reconstruction_loss_counts_the_object_four_times():
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[..., 2:4, 2:4] = 1.0
    ground, thing = pixels.clone(), pixels.clone()
    ground[..., 6, 6] += 0.1  # the same error off the object ...
    thing[..., 2, 2] += 0.1  # ... and on it
    edges = 0.5 * (4 * 0.1) / (7 * 8)  # 2 of 56 neighbours along each axis differ by 0.1
    pixel = (4 * 0.1**2 + 0.1) / 64
    loss = recipe.reconstruction_loss
    assert loss(ground, pixels).item() == pytest.approx(pixel + edges, rel=1e-4)
    assert loss(thing, pixels).item() == pytest.approx(4 * pixel + edges, rel=1e-4)


def test_montage_keeps_reading_order():
    pictures = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(3, axis=3)
    sheet = np.asarray(recipe.montage(pictures, columns=3, scale=1))
    assert sheet[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.fixture(scope="module")
def shipped():
    return StableDiffusionPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32)


def test_autoencoder_keeps_every_attribute(shipped):
    rng = np.random.default_rng(2)
    scenes = world.corrupt(world.all_scenes()[::2], rng, {"blur": 0.4, "specks": 0.4})
    pictures = world.render(scenes, rng)
    with torch.no_grad():
        decoded = shipped.vae(recipe.to_pixels(pictures)).sample
    decoded = shipped.image_processor.postprocess(decoded, output_type="np")
    kept = oracle.read((decoded * 255).round().astype(np.uint8)) == oracle.read(pictures)
    assert (kept.mean(axis=0) >= 0.94).all(), dict(zip(world.NAMES, kept.mean(axis=0), strict=True))
