"""Every family on a tiny random pipeline of its real class, saved and loaded."""

import numpy as np
import pytest
import torch
from tiny_pipelines import generator_config

from generators.build import build_generator

FAMILIES = {"stable_diffusion": "stable_diffusion", "stable_diffusion_v": "stable_diffusion"}
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def generators(tiny_pipeline):
    """One generator a kind for the tests that change nothing in it."""
    built = {}

    def get(kind):
        if kind not in built:
            built[kind] = build_generator(generator_config(FAMILIES[kind], tiny_pipeline(kind)))
        return built[kind]

    return get


def same_media(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("kind", FAMILIES)
def test_predict_equals_the_pipeline(generators, kind):
    generator = generators(kind)
    calls = []
    hook = generator.model.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args, kwargs, output[0])), with_kwargs=True
    )
    conditioning = generator.encode_prompts([PROMPT])
    generator.sample(conditioning, [5])
    hook.remove()
    args, kwargs, output = calls[1]  # the second step: not at the edge of the schedule
    latents = (args[0] if args else kwargs["hidden_states"])[-1:]
    with torch.no_grad():
        prediction = generator.predict(latents, generator.pipe.scheduler.timesteps[1:2], conditioning)
    assert output.std() > 0.01
    torch.testing.assert_close(prediction, output[-1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_samples_equal_the_pipeline_called_directly(generators, tiny_pipeline, kind):
    generator = generators(kind)
    seeds = [11, 7, 2**40]
    conditioning = generator.encode_prompts([PROMPT]).rows([0] * len(seeds))
    ours = generator.sample(conditioning, seeds)
    pipe = generator.pipeline_class.from_pretrained(tiny_pipeline(kind), **generator.overrides)
    pipe.set_progress_bar_config(disable=True)
    settings = {
        **generator.default_size,
        "num_inference_steps": generator.config.steps,
        "guidance_scale": generator.config.guidance_scale,
        f"num_{generator.modality}s_per_prompt": len(seeds),
    }
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    direct = pipe(PROMPT, generator=noise, output_type="latent", **settings)[0]
    assert torch.equal(ours.latents, direct)
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    pictures = pipe(PROMPT, generator=noise, **settings)[0]
    assert all(same_media(a, b) for a, b in zip(ours.media, pictures, strict=True))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_sample_depends_on_its_seed_and_prompt_alone(generators, kind):
    generator = generators(kind)
    conditioning = generator.encode_prompts(["a", PROMPT, "b"])
    alone = generator.sample(conditioning.rows([1]), [3], batch_size=4)
    among = generator.sample(conditioning.rows([0, 2, 0, 2, 0, 1, 2]), [9, 8, 3, 4, 5, 3, 1], batch_size=4)
    assert torch.equal(alone.latents[0], among.latents[5])
    assert same_media(alone.media[0], among.media[5])
    assert not torch.equal(among.latents[2], among.latents[5])  # the same seed, another prompt
    assert torch.equal(
        generator.encode_prompts([PROMPT])["prompt_embeds"][0], conditioning["prompt_embeds"][1]
    )


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_denoiser_alone_predicts_the_same(generators, tiny_pipeline, kind):
    whole = generators(kind)
    alone = build_generator(generator_config(FAMILIES[kind], tiny_pipeline(kind)), denoiser_only=True)
    assert alone.pipe.vae is None and alone.pipe.text_encoder is None
    conditioning = whole.encode_prompts([PROMPT])
    latents = whole.sample(conditioning, [1]).latents
    timesteps = whole.schedule.sample_timesteps(torch.Generator().manual_seed(0))
    assert torch.equal(alone.schedule.sample_timesteps(torch.Generator().manual_seed(0)), timesteps)
    with torch.no_grad():
        assert torch.equal(
            alone.predict(latents, timesteps, conditioning), whole.predict(latents, timesteps, conditioning)
        )


@pytest.mark.parametrize("kind", FAMILIES)
def test_encode_inverts_decoding(generators, kind):
    """What the VAE's encoder makes of a picture is what `encode` says, in the latents' own scale and
    order."""
    generator = generators(kind)
    sample = generator.sample(generator.encode_prompts([PROMPT]), [1])
    latents = generator.encode(sample.media)
    assert latents.shape == sample.latents.shape
    again = generator.encode(sample.media + sample.media)
    torch.testing.assert_close(again[1:], latents)
