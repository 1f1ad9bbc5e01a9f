import numpy as np
import pytest

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
