import json
import shutil

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_pipelines import generator_config

from generators.build import FAMILIES, build_generator

UNIPC_FLOW = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_an_unknown_family_lists_those_that_are_known(tmp_path):
    with pytest.raises(ValueError) as error:
        build_generator(generator_config("stable_difusion", tmp_path))
    assert all(family in one_line(error) for family in FAMILIES)


def test_a_missing_model_names_the_cache_searched(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as error:
        build_generator(generator_config("stable_diffusion", "nobody/no-such-model"))
    message = one_line(error)
    assert "nobody/no-such-model" in message and constants.HF_HUB_CACHE in message


def test_a_text_encoder_that_lacks_weights_is_refused(tiny_pipeline, tmp_path):
    """transformers would draw them at random."""
    folder = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "lacking")
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors[min(tensors)]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError) as error:
        build_generator(generator_config("stable_diffusion", folder))
    assert f"{folder}: cannot be loaded: text_encoder lacks 1 of its weights" in one_line(error)


@pytest.mark.parametrize("part", ["text_encoder/model", "unet/diffusion_pytorch_model"])
def test_a_file_that_was_copied_in_part_is_one_line(tiny_pipeline, tmp_path, part):
    folder = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "cut")
    path = folder / f"{part}.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises((OSError, ValueError)) as error:
        build_generator(generator_config("stable_diffusion", folder))
    assert f"generator.path={folder}: cannot be loaded: " in one_line(error)


def test_pickled_weights_are_not_read(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "pickled")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        build_generator(generator_config("stable_diffusion", folder))
    assert str(folder) in one_line(error)


def test_a_pipeline_whose_safety_checker_was_never_fetched_is_saved(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "fetched")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    build_generator(generator_config("stable_diffusion", folder)).save(tmp_path / "saved")
    build_generator(generator_config("stable_diffusion", tmp_path / "saved"))


def test_a_pipeline_without_weights(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "empty")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError) as error:
        build_generator(generator_config("stable_diffusion", folder))
    assert str(folder) in one_line(error)


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        build_generator(generator_config("stable_diffusion", tmp_path))
    assert "model_index.json" in one_line(error)


def test_a_pipeline_of_another_family(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline("stable_diffusion"), tmp_path / "other")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError) as error:
        build_generator(generator_config("stable_diffusion", folder))
    assert "FluxPipeline" in one_line(error) and "StableDiffusionPipeline" in one_line(error)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("stable_diffusion", {"prediction_type": "sample"}, "predicts sample, {} expects epsilon or v_pred"),
        ("stable_diffusion", UNIPC_FLOW, "predicts epsilon on flow sigmas, {} expects epsilon or v_pred"),
        ("cogvideox", {"prediction_type": "epsilon"}, "predicts epsilon, {} expects v_prediction"),
        ("wan", {"prediction_type": "epsilon"}, "predicts epsilon on flow sigmas, {} expects flow"),
        ("wan", {"use_flow_sigmas": False}, "predicts flow_prediction on other than flow sigmas, {} expects"),
        ("stable_diffusion_3", {"_class_name": "DDIMScheduler"}, "DDIMScheduler predicts epsilon, {} exp"),
    ],
)
def test_a_scheduler_that_predicts_something_else(tiny_pipeline, tmp_path, kind, changes, told):
    folder = shutil.copytree(tiny_pipeline(kind), tmp_path / "other")
    path, index = folder / "scheduler" / "scheduler_config.json", folder / "model_index.json"
    scheduler = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(scheduler))
    named = {"scheduler": ["diffusers", scheduler["_class_name"]]}
    index.write_text(json.dumps(json.loads(index.read_text()) | named))
    with pytest.raises(ValueError) as error:
        build_generator(generator_config(kind, folder), denoiser_only=True)
    assert told.format(kind) in one_line(error)


def test_a_cogvideox_1_5_is_refused(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline("cogvideox"), tmp_path / "newer")
    config = CogVideoXTransformer3DModel.load_config(folder / "transformer")
    CogVideoXTransformer3DModel.from_config(config, patch_size_t=2).save_pretrained(folder / "transformer")
    with pytest.raises(ValueError) as error:
        build_generator(generator_config("cogvideox", folder), denoiser_only=True)
    assert "a CogVideoX 1.5 model; this family is 2B and 5B" in one_line(error)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("cogvideox", {"frames": 13}, "needs a multiple of 8 plus 1; the nearest is 17"),
        ("cogvideox", {"frames": 12}, "needs a multiple of 8 plus 1; the nearest is 9"),
        ("wan", {"frames": 4}, "needs a multiple of 4 plus 1; the nearest is 5"),
        ("wan", {"width": 33}, "the nearest is 32"),
        ("stable_diffusion_3", {"height": 10**6}, "a multiple of 4, at most 32; the nearest is 32"),
        ("stable_diffusion_3", {"width": 19}, "the nearest is 20"),
        ("flux", {"width": 17}, "a multiple of 4; the nearest is 16"),
        ("stable_diffusion_xl", {"frames": 9}, "makes single pictures"),
    ],
)
def test_frames_and_sizes_name_the_nearest_that_the_family_can_do(tiny_pipeline, kind, changes, told):
    config = generator_config(kind, tiny_pipeline(kind), **changes)
    with pytest.raises(ValueError) as error:
        build_generator(config, denoiser_only=True)
    assert told in one_line(error)
    key, value = next(iter(changes.items()))
    assert f"generator.{key}={value}" in one_line(error)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"height": 17}, "the nearest is 16"),
        ({"width": 1}, "the nearest is 2"),
        ({"frames": 5}, "single pictures"),
        ({"dtype": "float8"}, "float32, bfloat16, float16"),
        ({"options": {"vae_tilling": True}}, "vae_tiling"),
    ],
)
def test_settings_that_the_family_cannot_do(tiny_pipeline, changes, told):
    with pytest.raises(ValueError) as error:
        build_generator(generator_config("stable_diffusion", tiny_pipeline("stable_diffusion"), **changes))
    assert told in one_line(error)


@pytest.mark.parametrize("kind", ["stable_diffusion", "cogvideox", "wan"])
@pytest.mark.parametrize("option", ["vae_tiling", "vae_slicing"])
def test_the_options_of_the_vae_reach_it(tiny_pipeline, kind, option):
    settings = generator_config(kind, tiny_pipeline(kind))
    settings.options = settings.options | {option: True}
    vae = build_generator(settings).pipe.vae
    assert (vae.use_tiling, vae.use_slicing) == (option == "vae_tiling", option == "vae_slicing")


def test_a_lack_of_memory_is_left_to_who_says_what_to_lower(tiny_pipeline, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", full)
    with pytest.raises(RuntimeError, match="^DefaultCPUAllocator"):
        build_generator(generator_config("stable_diffusion", tiny_pipeline("stable_diffusion")))
