"""The bundled video generator and judge: what ships."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from generators.build import build_generator
from mpo.config import load
from quickstart.check_judge import agreement
from quickstart.recipe import encode
from quickstart.video import oracle, world
from quickstart.video.course import annotator, random_scenes
from quickstart.video.train_judge import as_stored
from rewards.build import load_judge
from rewards.media import load_media

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "quickstart" / "video" / "weights"


@pytest.fixture(scope="module")
def generator():
    return build_generator(load(ROOT / "configs" / "quickstart_video.yaml").generator)


@pytest.fixture(scope="module", autouse=True)
def at_the_root():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


def test_weights_are_small_and_in_half_precision():
    files = list(WEIGHTS.rglob("*.safetensors"))
    assert {path.relative_to(WEIGHTS).parts[0] for path in files} == {"generator", "judge"}
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    for path in files:
        with safe_open(path, "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}


def test_autoencoder_keeps_every_attribute(generator):
    rng = np.random.default_rng(3)
    scenes = random_scenes(48, rng)
    mean, _ = encode(generator.pipe.vae, world.render(scenes, rng))
    decoded = generator.pipe.vae.decode(mean).sample.clamp(-1, 1)
    clips = ((decoded + 1) * 127.5).round().byte().movedim(1, -1).numpy()
    seen, present = oracle.read(clips)
    moves = scenes[:, world.COLUMN["freeze"]] < 2
    assert present.all()
    for name, column in world.COLUMN.items():
        rows = moves if name in ("direction", "speed") else slice(None)
        assert (seen[:, column] == scenes[:, column])[rows].mean() >= 0.95, name


def test_base_model_follows_prompts_and_is_imperfect_in_every_dimension(generator):
    scenes = world.all_scenes()[::6]
    prompts = [world.prompt_of(scene) for scene in scenes]
    clips = as_stored(np.stack(generator.sample(generator.encode_prompts(prompts), range(48), 48).media))
    seen, present = oracle.read(clips)
    right = world.right(seen, scenes)
    shares = {
        dimension: np.mean([(right[name] & present).mean() for name in names])
        for dimension, names in oracle.DIMENSIONS.items()
    }
    assert all(0.4 < share < 0.98 for share in shares.values()), shares


def test_judge_is_right_about_renders_and_says_yes_or_no():
    judge, rng = load_judge(WEIGHTS / "judge", frames=f"uniform:{world.FRAMES}"), np.random.default_rng(7)
    scenes, teacher = random_scenes(96, rng), annotator()
    media = [load_media(clip, f"uniform:{world.FRAMES}") for clip in as_stored(world.render(scenes, rng))]
    right = agreement(judge, teacher, media, scenes, rng)
    assert np.mean(list(right.values())) >= 0.96 and min(right.values()) >= 0.8, right  # chance: 0.5
    answers = judge.answer(media[:8], [teacher.checklist.ask(world.prompt_of(scene)) for scene in scenes[:8]])
    assert max(float(item.outside.max()) for item in answers) < 0.02
