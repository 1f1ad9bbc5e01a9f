from pathlib import Path

import numpy as np
import pytest

from quickstart import world


def test_prompts_name_each_scene_once():
    scenes = world.all_scenes()
    prompts = [world.prompt_of(scene) for scene in scenes]
    assert len(set(prompts)) == len(scenes) == 4 * 6 * 2 * 5 * 4
    assert "a small red circle on the left of a white background" in prompts
    assert (world.scenes_of(prompts) == scenes).all()


def test_unknown_prompt_is_named():
    with pytest.raises(ValueError, match="a huge red circle"):
        world.scenes_of(["a huge red circle"])


def test_corrupt_changes_the_stated_share_and_nothing_else():
    scenes = np.concatenate([world.all_scenes()] * 10)
    wrong = world.corrupt(scenes, np.random.default_rng(0), {"colour": 0.3}) != scenes
    assert abs(wrong[:, world.COLUMN["colour"]].mean() - 0.3) < 0.02  # 9600 draws: 4 sigma is 0.019
    assert wrong.sum() == wrong[:, world.COLUMN["colour"]].sum()


def test_same_seed_same_pictures():
    scenes = world.all_scenes()[::97]
    first, second = (world.render(scenes, np.random.default_rng(7)) for _ in range(2))
    assert (first == second).all()
    assert (first != world.render(scenes, np.random.default_rng(8))).any()


def test_right_without_an_object_leaves_only_background_and_specks():
    asked = world.all_scenes()[:3]
    absent = asked.copy()
    absent[:, world.COLUMN["present"]] = 0
    answers = world.right(absent, asked)
    assert {name for name, value in answers.items() if value.all()} == {"background", "clean"}
    assert all(value.all() for value in world.right(asked, asked).values())


def test_prompt_files_are_disjoint_and_of_this_world():
    folder = Path(world.__file__).parent / "prompts"
    train, heldout = ((folder / f"{name}.txt").read_text().splitlines() for name in ("train", "heldout"))
    assert len(heldout) >= 128
    assert len(set(train) | set(heldout)) == len(train) + len(heldout)
    assert len(world.scenes_of(train + heldout)) == len(train) + len(heldout)
