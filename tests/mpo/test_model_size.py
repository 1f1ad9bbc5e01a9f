import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_pipelines import generator_config

from generators.adapters import LoraTuning
from generators.build import FAMILIES, build_generator, family_class
from mpo import model_size
from mpo.config import GeneratorConfig, LoraConfig, RunConfig, TrainConfig, load
from mpo.model_size import latent_size, own_sample_size, read_size, sample_bytes


@pytest.fixture
def config(tiny_run, tmp_path):
    return load(tiny_run(tmp_path))


def test_parameters_are_those_of_the_loaded_model(config, tiny_pipeline):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline("stable_diffusion"))
    size = read_size(config.generator.path, config)
    for part in ("unet", "vae", "text_encoder"):
        assert size.parameters[part] == sum(p.numel() for p in getattr(pipe, part).parameters()), part
    assert size.bytes("bfloat16", "unet") == 2 * size.parameters["unet"]


def test_lora_parameters_are_those_that_training_saves(config, tmp_path):
    size = read_size(config.generator.path, config)
    LoraTuning(build_generator(config.generator), rank=2).save(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "pytorch_lora_weights.safetensors")
    assert 2 * size.adapted == sum(tensor.numel() for tensor in saved.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_is_said_to_be_is_what_its_class_is(family, tiny_pipeline):
    asked = RunConfig(generator=GeneratorConfig(family=family, path=str(tiny_pipeline(family))))
    assert sorted(model_size.lora_targets(asked)) == sorted(family_class(family).lora_targets)
    assert model_size.FAMILIES[family].guided == (family_class(family).guided is not False)
    made = build_generator(generator_config(family, tiny_pipeline(family)), denoiser_only=True).default_size
    assert own_sample_size(asked) == (made.get("num_frames", 1), made["height"], made["width"])


def test_latent_frames_follow_from_the_ratio_of_the_vae():
    """The bundled VAE keeps every frame, Wan's and CogVideoX's one of four after the first."""
    bundled = Path("quickstart/video/weights/generator")
    vae, denoiser = (
        json.loads((bundled / part / "config.json").read_text()) for part in ("vae", "transformer")
    )
    run = load("configs/quickstart_video.yaml")
    assert own_sample_size(run) == (9, 32, 32)
    assert latent_size(vae, (9, 32, 32)) == (9, 8, 8)
    # 9 frames of 32 x 32 pixels at half a byte, 9 latent frames of 8 x 8 places and 4 floats
    assert sample_bytes(vae, denoiser, (9, 32, 32)) == 9 * 32 * 32 / 2 + 4 * 4 * 9 * 8 * 8
    wan = {"z_dim": 16, "dim_mult": [1, 2, 4, 4]}
    assert latent_size(wan, (81, 480, 832)) == (21, 60, 104)
    assert latent_size({"temporal_compression_ratio": 8}, (17, 1, 1)) == (3, 1, 1)
    assert latent_size({"scale_factor_temporal": 2}, (17, 1, 1)) == (9, 1, 1)
    assert sample_bytes(wan, {}, (81, 480, 832)) == 81 * 480 * 832 / 2 + 4 * 16 * 21 * 60 * 104


def test_a_picture_on_disk_is_its_pixels_and_its_latents():
    # FLUX: its VAE's 16 channels, not the 64 of the packed latents that the denoiser sees
    flux = {"latent_channels": 16, "block_out_channels": [128, 256, 512, 512]}
    assert sample_bytes(flux, {"in_channels": 64}, (1, 512, 512)) == 512 * 512 * 2 + 4 * 16 * 64 * 64
    assert sample_bytes({}, {}, (1, 8, 8)) is None


def test_what_the_config_sets_goes_before_the_models_own_size(tiny_pipeline):
    chosen = GeneratorConfig(family="wan", path=str(tiny_pipeline("wan")), height=16, frames=9)
    assert own_sample_size(RunConfig(generator=chosen)) == (9, 16, 832)
    assert own_sample_size(RunConfig(generator=GeneratorConfig(path="nobody/nothing"))) is None


def test_a_damaged_file_is_named(config, tiny_pipeline, tmp_path):
    copy = Path(shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "copy"))
    (file,) = (copy / "unet").glob("*.safetensors")
    whole = file.read_bytes()
    for left in (b"", whole[:5], whole[:990], whole[:-1], b"version https://git-lfs.github.com/spec/v1"):
        file.write_bytes(left)
        with pytest.raises(ValueError) as caught:
            read_size(str(copy), config)
        assert str(caught.value) == (
            f"{file}: damaged or copied in part, no whole safetensors file; fetch it again"
        )
    file.write_bytes(whole)
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"vae/config.json: not JSON: "):
        read_size(str(copy), config)


def test_only_what_is_loaded_is_counted_and_nothing_where_a_part_is_missing(config, tiny_pipeline, tmp_path):
    copy = Path(shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "copy"))
    size = read_size(str(copy), config)
    (file,) = (copy / "unet").glob("*.safetensors")
    (copy / "safety_checker").mkdir()
    for second in (copy / "all.safetensors", copy / "safety_checker" / "model.safetensors"):
        shutil.copy(file, second)
    assert read_size(str(copy), config).parameters == size.parameters
    weights = {"a": file.name, "b": "of-2.safetensors"}
    (copy / "unet" / "w.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert read_size(str(copy), config).parameters == {}
    shutil.copy(file, copy / "unet" / "of-2.safetensors")
    assert read_size(str(copy), config).denoiser == 2 * size.denoiser


def test_adapters_of_convolutions_are_counted_too(config):
    targets = ["to_q", "conv1"]
    config.train = TrainConfig(lora=LoraConfig(rank=2, targets=targets))
    generator = build_generator(config.generator, denoiser_only=True)
    trained = LoraTuning(generator, rank=2, targets=targets).policy.trained
    assert 2 * read_size(config.generator.path, config).adapted == sum(p.numel() for p in trained)


def test_a_target_of_lora_that_no_module_has_is_refused(config):
    config.train = TrainConfig(lora=LoraConfig(targets=["to_q", "to_qq"]))
    with pytest.raises(ValueError, match=r"train.lora.targets: to_qq matches no module of "):
        read_size(config.generator.path, config)
    for takes_none in ("to_out", "norm1"):  # a list of modules, and a norm
        config.train.lora.targets = [takes_none]
        with pytest.raises(ValueError, match=f"{takes_none} matches no module of .* that takes an adapter"):
            read_size(config.generator.path, config)
    config.train.mode = "full"
    assert read_size(config.generator.path, config).denoiser > 0
