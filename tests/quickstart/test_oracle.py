import numpy as np
import pytest
from PIL import Image

from quickstart import oracle, world


@pytest.fixture(scope="module")
def rendered():
    rng = np.random.default_rng(1)
    scenes = world.corrupt(world.all_scenes()[::2], rng, {"blur": 0.6, "specks": 0.6, "present": 0.05})
    return scenes, world.render(scenes, rng)


@pytest.mark.parametrize("name", world.NAMES)
def test_reads_renders_back(rendered, name):
    scenes, pictures = rendered
    read, column = oracle.read(pictures), world.COLUMN[name]
    judged = scenes[:, world.COLUMN["present"]] == 1
    if name in ("background", "specks", "present"):
        judged[:] = True
    assert (read[judged, column] == scenes[judged, column]).mean() >= 0.99


def test_reading_does_not_depend_on_the_batch(rendered):
    pictures = rendered[1][:20]
    assert (oracle.read(pictures) == np.concatenate([oracle.read(p[None]) for p in pictures])).all()


def test_refuses_other_sizes():
    with pytest.raises(ValueError, match=r"uint8 \[B, 64, 64, 3\]"):
        oracle.read(np.zeros((1, 32, 32, 3), np.uint8))


def test_reward_is_the_share_right_by_dimension():
    asked = world.scenes_of(["a small red circle on the left of a white background"])
    wrong = asked.copy()
    wrong[0, world.COLUMN["colour"]] = 2
    wrong[0, world.COLUMN["blur"]] = 1
    prompt = world.prompt_of(asked[0])
    pictures = world.render(np.concatenate([asked, wrong]), np.random.default_rng(0))
    good, bad = oracle.OracleReward().score([Image.fromarray(p) for p in pictures], [prompt, prompt])
    assert good.dimensions == {"alignment": 1, "composition": 1, "setting": 1, "quality": 1}
    assert bad.dimensions == {"alignment": 0.5, "composition": 1, "setting": 1, "quality": 0.5}
    assert np.mean(list(bad.p_yes.values())) == pytest.approx(5 / 7)  # wrong: colour and clear, of seven


def test_reward_of_a_prompt_of_another_world_is_missing():
    card = oracle.OracleReward().score(Image.new("RGB", (64, 64)), 'a "cat" \U0001f408')
    assert "names no scene" in card.missing
