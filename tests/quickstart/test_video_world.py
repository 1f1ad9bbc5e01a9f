from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from generators.saving import save_media
from quickstart.video import oracle, world
from rewards.media import load_media

DEFECTS = {name: 0.4 for name in world.NAMES[5:]}


@pytest.fixture(scope="module")
def rendered():
    rng = np.random.default_rng(1)
    scenes = world.corrupt(world.all_scenes(), rng, DEFECTS)
    return scenes, world.render(scenes, rng)


def agreement(scenes: np.ndarray, clips: np.ndarray) -> dict[str, float]:
    """By attribute, the share of clips that the oracle reads as they are; a still object has no direction."""
    read, present = oracle.read(clips)
    assert present.all()
    moves = scenes[:, world.COLUMN["freeze"]] < 2
    rows = {name: moves if name in ("direction", "speed") else slice(None) for name in world.NAMES}
    return {name: (read == scenes)[rows[name], world.COLUMN[name]].mean() for name in world.NAMES}


def test_oracle_reads_renders_back(rendered):
    assert min(agreement(*rendered).values()) >= 0.99, agreement(*rendered)


def test_oracle_reads_renders_back_from_mp4(rendered, tmp_path):
    scenes, clips = (part[::9] for part in rendered)
    read = []
    for clip in clips:
        save_media(clip, tmp_path / "clip.mp4", 8)
        read.append(load_media(tmp_path / "clip.mp4", "uniform:9").frames)
    assert min(agreement(scenes, np.stack(read)).values()) >= 0.96  # one of 32 may be off


def test_oracle_does_not_depend_on_the_batch_and_refuses_other_sizes(rendered):
    clips = rendered[1][:6]
    alone = np.concatenate([oracle.read(clip[None])[0] for clip in clips])
    assert (oracle.read(clips)[0] == alone).all()
    with pytest.raises(ValueError, match=r"uint8 \[B, 9, 32, 32, 3\]"):
        oracle.read(clips[:, :5])


def test_reward_is_the_share_right_by_dimension():
    asked = world.scenes_of(["a red circle moving slowly left on a white background"])
    wrong = asked.copy()
    for name in ("colour", "fade", "recolour", "jitter"):
        wrong[0, world.COLUMN[name]] = 1
    still = asked.copy()
    still[0, world.COLUMN["freeze"]] = 2
    halfway = asked.copy()
    halfway[0, world.COLUMN["freeze"]] = 1
    scenes = np.concatenate([asked, wrong, still, halfway])
    clips = world.render(scenes, np.random.default_rng(0))
    empty = np.full_like(clips[:1], 242)
    cards = oracle.OracleReward().score(list(np.concatenate([clips, empty])), [world.prompt_of(asked[0])] * 5)
    names = ("alignment", "quality", "preservation", "dynamic", "stability")
    expected = [
        (1, 1, 1, 1, 1),
        (0.8, 0, 0.5, 1, 0),  # of five, one wrong; of two, one wrong
        (0.6, 1, 1, 0, 1),  # neither direction nor speed
        (1, 1, 1, 0.5, 1),
        (0.2, 0, 0, 0, 0),  # nothing but the background
    ]
    found = [tuple(card.dimensions[name] for name in names) for card in cards]
    assert found == [pytest.approx(row) for row in expected]


def test_reward_of_a_prompt_of_another_world_is_missing():
    clip = world.render(world.all_scenes()[:1], np.random.default_rng(0))[0]
    assert "names no scene" in oracle.OracleReward().score(clip, 'a "cat" \U0001f408').missing


def test_tracks_are_what_the_scene_says():
    scenes = np.concatenate([world.all_scenes()[::24]] * 4)
    for name, value in (("jitter", 1), ("freeze", 1), ("fade", 1), ("recolour", 1), ("reshape", 1)):
        scenes[: len(scenes) // 2, world.COLUMN[name]] = value
    tracks = world.animate(scenes, np.random.default_rng(3))
    faulty, whole = slice(None, len(scenes) // 2), slice(len(scenes) // 2, None)
    speed = np.abs(np.diff(tracks.centre, axis=1)).sum(2)
    assert (speed[whole] == world.STEP[scenes[whole, world.COLUMN["speed"]], None]).all()
    assert (np.abs(np.diff(tracks.centre, axis=1)).max(2)[faulty, -1] == 2 * world.SHAKE).all()
    for track in (tracks.shape, tracks.colour):
        assert (track[whole] == track[whole, :1]).all() and (track[faulty, 0] != track[faulty, -1]).all()
    assert (tracks.opacity[whole] == 1).all() and (tracks.opacity[faulty, -1] < 0.5).all()


def test_same_seed_same_clips():
    scenes = world.all_scenes()[::60]
    first, second = (world.render(scenes, np.random.default_rng(7)) for _ in range(2))
    assert (first == second).all()
    assert (first != world.render(scenes, np.random.default_rng(8))).any()
    assert {
        len(getattr(world.animate(scenes, np.random.default_rng(7)), f.name)) for f in fields(world.Tracks)
    } == {5}


def test_prompt_files_are_disjoint_and_of_this_world():
    folder = Path(world.__file__).parent / "prompts"
    train, heldout = ((folder / f"{name}.txt").read_text().splitlines() for name in ("train", "heldout"))
    assert len(heldout) == 96 and len(set(train) | set(heldout)) == len(world.all_scenes()) == 288
    assert len(world.scenes_of(train + heldout)) == 288
