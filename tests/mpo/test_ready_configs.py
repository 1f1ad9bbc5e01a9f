"""The configs of real models say what they should, and every setting in them is one that the code knows."""

from pathlib import Path

import pytest

from generators.build import FAMILIES as BUILT
from generators.build import family_class
from mpo.config import FAMILIES, load
from mpo.losses import per_element_beta
from mpo.training_arguments import training_arguments

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = ["sd15", "sd21", "sdxl", "sd35", "flux", "cogvideox_2b", "cogvideox_5b", "wan21_1_3b"]


@pytest.mark.parametrize("name", MODELS)
def test_every_setting_is_known(name):
    config = load(CONFIGS / f"{name}.yaml")
    assert config.name == name
    kind = family_class(config.generator.family)
    assert set(config.generator.options) <= set(kind.options)
    if config.generator.frames:
        of = 8 if config.generator.family == "cogvideox" else 4
        assert kind.modality == "video" and config.generator.frames % of == 1
    for processes in (1, 8):
        arguments = training_arguments(config.train, "out", 0, processes, bf16=False)  # a CPU may lack it
        assert (
            arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * processes
            == config.train.batch_size
        )


def test_settings_and_generators_name_the_same_families():
    assert FAMILIES == BUILT
    assert {load(CONFIGS / f"{name}.yaml").generator.family for name in MODELS} == set(FAMILIES)


# name: candidates, batch, beta, learning rate, steps, as the paper's table of recipes has them
RECIPES = {
    "sdxl": (8, 256, 5000, 5e-9 * 256, 3000),
    "cogvideox_2b": (4, 32, 500, 5e-6, 500),
    "cogvideox_5b": (4, 64, 500, 2e-6, 300),
}
SCHEDULES = {
    "sdxl": ("constant_with_warmup", 100),
    "cogvideox_2b": ("linear", 100),
    "cogvideox_5b": ("constant_with_warmup", 0),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_papers_recipes(name):
    config = load(CONFIGS / f"{name}.yaml")
    train = config.train
    found = (config.generate.candidates, train.batch_size, train.beta, train.learning_rate, train.steps)
    assert found == pytest.approx(RECIPES[name])
    if name.startswith("cogvideox"):
        assert config.pairs.margin == pytest.approx(0.6 / 29, abs=5e-5)
    assert (train.mode, train.lr_scheduler, train.warmup_steps) == ("full", *SCHEDULES[name])


def test_the_2b_recipe_takes_the_best_of_a_checkpoint_every_40_steps():
    config = load(CONFIGS / "cogvideox_2b.yaml")
    assert config.train.save_steps == config.validate.every == 40
    assert config.validate.prompts >= 32 and config.prompts.validation


def test_beta_per_element_is_what_the_configs_say():
    # 16 x 64 x 64 at 512 pixels; 16 channels, 21 frames, 60 x 104 at 480 by 832 pixels
    assert per_element_beta(load(CONFIGS / "sd35.yaml").train.beta, 16 * 64 * 64) == pytest.approx(
        0.0015, abs=5e-5
    )
    wan = load(CONFIGS / "wan21_1_3b.yaml")
    assert per_element_beta(wan.train.beta, 16 * 21 * 60 * 104) == pytest.approx(0.00095, abs=5e-6)
