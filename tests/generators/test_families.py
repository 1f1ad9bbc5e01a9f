"""Every family on a tiny random pipeline of its real class, saved and loaded."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import FAMILIES, generator_config

from generators.adapters import LoraTuning
from generators.build import build_generator
from generators.schedules import RectifiedFlow

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def generators(tiny_pipeline):
    """One generator a kind for the tests that change nothing in it."""
    built = {}

    def get(kind):
        if kind not in built:
            built[kind] = build_generator(generator_config(kind, tiny_pipeline(kind)))
        return built[kind]

    return get


def same_media(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("kind", FAMILIES)
def test_predict_equals_the_pipeline(generators, kind):
    generator = generators(kind)
    conditioning = generator.encode_prompts([PROMPT])
    embeds = conditioning["prompt_embeds"]
    calls = []

    def record(module, args, kwargs, output):
        if torch.equal(kwargs["encoder_hidden_states"][-1:], embeds):  # not the unconditional branch
            calls.append((args[0] if args else kwargs["hidden_states"], output[0]))

    hook = generator.model.register_forward_hook(record, with_kwargs=True)
    generator.sample(conditioning, [5])
    hook.remove()
    seen, output = calls[1]  # the second step: not at the edge of the schedule
    expected = generator.from_pipeline(output[-1:])
    timesteps = generator.pipe.scheduler.timesteps[1:2]
    with torch.no_grad():
        prediction = generator.predict(generator.from_pipeline(seen[-1:]), timesteps, conditioning)
        elsewhere = generator.predict(generator.from_pipeline(seen[-1:]), timesteps + 100, conditioning)
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=0)
    assert (elsewhere - expected).abs().max() > 1e-3  # so the timestep is heard


@pytest.mark.parametrize("kind", FAMILIES)
def test_samples_equal_the_pipeline_called_directly(generators, tiny_pipeline, kind):
    generator = generators(kind)
    seeds = [11, 7, 2**40]
    conditioning = generator.encode_prompts([PROMPT]).rows([0] * len(seeds))
    ours = generator.sample(conditioning, seeds)
    pipe = generator.pipeline_class.from_pretrained(tiny_pipeline(kind), **generator.overrides)
    pipe.set_progress_bar_config(disable=True)
    settings = {
        **generator._size(),
        "num_inference_steps": generator.config.steps,
        "guidance_scale": generator.config.guidance_scale,
    }
    prompt = PROMPT
    if generator.family == "cogvideox":  # whose pipeline makes one clip a prompt, whatever it is asked for
        prompt = [PROMPT] * len(seeds)
    else:
        settings[f"num_{generator.modality}s_per_prompt"] = len(seeds)
    if not kind.startswith("stable_diffusion") or kind == "stable_diffusion_3":
        settings["max_sequence_length"] = 16  # of the tiny text encoders
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    direct = pipe(prompt, generator=noise, output_type="latent", **settings)[0]
    assert torch.equal(ours.latents, generator.from_pipeline(direct))
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    output_type = "np" if generator.modality == "video" else "pil"
    pictures = pipe(prompt, generator=noise, output_type=output_type, **settings)[0]
    if generator.modality == "video":
        pictures = [(clip * 255).round().astype("uint8") for clip in pictures]
        assert ours.media[0].shape[0] == generator._size()["num_frames"]
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
    alone = build_generator(generator_config(kind, tiny_pipeline(kind)), denoiser_only=True)
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
def test_noising_is_the_samplers_and_the_exact_target_gives_x0_back(generators, kind):
    generator = generators(kind)
    sample = generator.sample(generator.encode_prompts([PROMPT]), [1])
    x0 = sample.latents / sample.latents.std()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    scheduler = generator.pipe.scheduler
    scheduler.set_timesteps(generator.config.steps, **({"mu": 0.7} if kind == "flux" else {}))
    timesteps = scheduler.timesteps[1:2]
    ours = timesteps if generator.schedule.__class__ is RectifiedFlow else timesteps.long()
    noised = generator.schedule.add_noise(x0, noise, ours)
    if hasattr(scheduler, "scale_noise"):
        theirs = scheduler.scale_noise(x0, timesteps, noise)
    else:
        theirs = scheduler.add_noise(x0, noise, timesteps)
        if kind == "stable_diffusion_xl":  # Euler noises x0 without shrinking it, and shrinks the sum
            theirs = scheduler.scale_model_input(theirs, timesteps[0])
    rounding = 2e-3 if kind == "wan" else 1e-5  # UniPC rounds its timesteps to whole numbers
    torch.testing.assert_close(noised, theirs, atol=4 * rounding, rtol=0)
    target = generator.schedule.target(x0, noise, ours)
    torch.testing.assert_close(generator.schedule.x0(noised, target, ours), x0, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_step_of_the_familys_own_sampler_with_the_exact_target_gives_x0_back(generators, kind):
    schedule, scheduler = generators(kind).schedule, deepcopy(generators(kind).pipe.scheduler)
    name, place = type(scheduler).__name__, 1
    if name == "FlowMatchEulerDiscreteScheduler":
        scheduler.set_timesteps(sigmas=[0.6], mu=0.7)  # a single step, which ends without noise
        place = 0
    else:
        scheduler.set_timesteps(2 if name == "UniPCMultistepScheduler" else 4)
    timestep = scheduler.timesteps[place]
    ours = timestep[None] if isinstance(schedule, RectifiedFlow) else timestep[None].long()
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noised, target = schedule.add_noise(x0, noise, ours), schedule.target(x0, noise, ours)
    assert (noised - x0).abs().mean() > 0.2
    match name:
        case "FlowMatchEulerDiscreteScheduler" | "UniPCMultistepScheduler":
            scheduler.set_begin_index(place)
            found = scheduler.step(target, timestep, noised).prev_sample
        case "EulerDiscreteScheduler":  # whose own x_t is x0 + sigma noise
            own = noised * (scheduler.sigmas[place] ** 2 + 1).sqrt()
            found = scheduler.step(target, timestep, own).pred_original_sample
        case "CogVideoXDPMScheduler":
            found = scheduler.step(target, None, timestep, None, noised)[1]
        case _:
            found = scheduler.step(target, timestep, noised).pred_original_sample
    rounding = 4e-3 if kind == "wan" else 1e-4  # UniPC rounds its timesteps to whole numbers
    torch.testing.assert_close(found, x0, atol=rounding, rtol=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_saved_adapter_reproduces_the_tuned_samples_in_a_plain_pipeline(tiny_pipeline, tmp_path, kind):
    generator = build_generator(generator_config(kind, tiny_pipeline(kind)))
    conditioning = generator.encode_prompts([PROMPT])
    base = generator.sample(conditioning, [1]).latents
    tuning = LoraTuning(generator, rank=2, alpha=6)
    for parameter in generator.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.3)
    tuned = generator.sample(conditioning, [1]).latents
    tuning.export(tmp_path)
    plain = build_generator(generator_config(kind, tiny_pipeline(kind)))
    plain.pipe = DiffusionPipeline.from_pretrained(tiny_pipeline(kind))
    plain.pipe.load_lora_weights(tmp_path)
    assert (tuned - base).abs().max() > 1e-3
    assert torch.equal(plain.sample(conditioning, [1]).latents, tuned)


@pytest.mark.parametrize("kind", FAMILIES)
def test_encode_undoes_the_decoding_of_latents(generators, kind):
    """What each pipeline hands to its VAE for these latents is the posterior's mean of the very picture."""
    generator = generators(kind)
    sample = generator.sample(
        generator.encode_prompts([PROMPT]),
        [
            1,
        ],
    )
    latents = generator.encode(sample.media * 2)
    assert latents.shape == (2, *sample.latents.shape[1:])
    assert torch.equal(latents[0], latents[1])
    vae, pixels = generator.pipe.vae, generator._pixels(sample.media[0])
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(denormalised(generator, latents[:1]), posterior, atol=1e-5, rtol=1e-4)


def denormalised(generator, latents):
    """Latents as each pipeline's own code hands them to its VAE."""
    config = generator.pipe.vae.config
    match generator.family:
        case "cogvideox":
            return latents.permute(0, 2, 1, 3, 4) / config.scaling_factor
        case "wan":
            mean, std = (
                torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std)
            )
            return latents * std + mean
        case "stable_diffusion_3" | "flux":
            return latents / config.scaling_factor + config.shift_factor
        case _:
            return latents / config.scaling_factor


def test_a_clip_that_is_too_short_is_one_line(generators):
    with pytest.raises(ValueError, match="a clip of 5 frames, but generator.frames=9"):
        generators("wan").encode([np.zeros((5, 16, 32, 3), np.uint8)])


@pytest.mark.parametrize(("kind", "frames"), [("cogvideox", (9, 17)), ("wan", (5, 13))])
def test_a_clip_has_as_many_frames_as_asked_for(tiny_pipeline, kind, frames):
    for count in frames:
        generator = build_generator(generator_config(kind, tiny_pipeline(kind), steps=1, frames=count))
        clip = generator.sample(generator.encode_prompts([PROMPT]), [1]).media[0]
        assert len(clip) == generator.frame_count == count
