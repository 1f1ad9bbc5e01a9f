"""The recipes of the bundled video generator and judge, a few steps each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from generators.build import build_generator
from mpo.artifacts import resolve
from mpo.config import GeneratorConfig, load
from mpo.models import Models
from mpo.pipeline import run_stages
from mpo.scores import read_scores
from mpo.store import read_table
from quickstart.video import oracle, train_generator, train_judge, world
from quickstart.video.course import CHECKLIST, Course, random_asked, random_scenes
from quickstart.video.judge import clip_states, decode
from rewards.build import load_judge
from rewards.checklist import Checklist
from rewards.judges.base import Answers
from rewards.media import load_media

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart_video.yaml"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with a generator and a judge after two steps of each part."""
    folder = tmp_path_factory.mktemp("video")
    train_generator.build(folder / "generator", autoencoder_steps=2, denoiser_steps=2, copies=1)
    tiny = {"clips": 8, "seeing_steps": 2, "steps": 2, "threads": 1, "batch": 8}
    train_judge.main(folder / "judge", folder / "generator", **tiny)
    return folder


@pytest.fixture(scope="module")
def course() -> Course:
    return Course(Checklist.from_yaml(CHECKLIST))


def test_tokenizer_makes_a_token_of_each_word_and_takes_any_text():
    tokenizer = train_generator.new_tokenizer()
    for prompt in map(world.prompt_of, world.all_scenes()):
        assert tokenizer.tokenize(prompt) == [f"\u2581{word}" for word in prompt.split()]
    odd = tokenizer('"quotes"\n\U0001f408 ' * 200, padding="max_length", truncation=True).input_ids
    assert len(odd) == train_generator.PROMPT_TOKENS


def test_built_generator_samples_clips_through_the_house(built):
    size = sum(path.stat().st_size for path in built.rglob("*.safetensors"))
    assert size < 6_000_000  # half precision; the bundled weights may take 12 MB
    config = GeneratorConfig(family="cogvideox", path=str(built / "generator"), steps=2, guidance_scale=1.0)
    generator = build_generator(config)
    conditioning = generator.encode_prompts([world.prompt_of(scene) for scene in world.all_scenes()[:2]])
    samples = generator.sample(conditioning, [1, 2])
    assert [clip.shape for clip in samples.media] == [(world.FRAMES, world.SIZE, world.SIZE, 3)] * 2
    assert generator.frame_rate == 8


def test_the_judge_is_seeded_and_loads_as_a_judge_of_clips(built, tmp_path):
    tiny = {"clips": 8, "seeing_steps": 2, "steps": 2, "threads": 1, "batch": 8}
    for name, seed in (("again", 0), ("other", 1)):
        train_judge.main(tmp_path / name, built / "generator", seed=seed, **tiny)
    once, again, other = (
        load_file(folder / "model.safetensors")
        for folder in (built / "judge", tmp_path / "again", tmp_path / "other")
    )
    # MKL's sums depend on where a tensor lies in memory: a few last bits differ
    torch.testing.assert_close(once, again, rtol=2e-3, atol=1e-4)
    moved = [(once[name].float() - other[name].float()).abs().max() for name in once if once[name].dim() > 1]
    assert min(moved) > 1e-2
    assert load_judge(built / "judge").modality == "video"


def test_every_question_of_the_checklist_is_taught_and_has_a_truth(course):
    scenes = random_scenes(4, np.random.default_rng(0))
    assert (
        {*course.about_prompt, *course.about_clip}
        == set(course.checklist.ids)
        == set(world.right(scenes, scenes))
    )
    assert course.about_prompt == list(world.PROMPTED)


def test_words_of_a_prompt_are_supervised_where_they_stand(course):
    rng = np.random.default_rng(0)
    asked = course.prompted(random_scenes(16, rng), 3, rng)
    ids = asked.ids.gather(2, asked.at)
    names = course.tokenizer.convert_ids_to_tokens(ids.reshape(-1, 6)[:, 1:].flatten().tolist())
    for word, attribute in zip(names, list(world.PROMPTED) * (16 * 3), strict=True):
        assert word in world.ATTRIBUTES[attribute]


def test_prompts_are_right_in_half_of_the_questions():
    rng = np.random.default_rng(0)
    scenes = random_scenes(20_000, rng)
    moves = scenes[:, world.COLUMN["freeze"]] < 2
    true = world.right(scenes, random_asked(scenes, rng))
    for name in world.PROMPTED:
        assert true[name][moves].mean() == pytest.approx(0.5, abs=0.018)  # 4 standard errors of 13,000 draws


def test_training_asks_token_for_token_what_the_driver_asks(course, built):
    judge = load_judge(built / "judge", frames="uniform:9")
    rng = np.random.default_rng(1)
    scenes = random_scenes(2, rng)
    clips, prompt = world.render(scenes, rng), world.prompt_of(scenes[0])
    media = [load_media(clip, "uniform:9") for clip in clips]
    answered = judge.answer(media, [course.checklist.ask(prompt)] * 2)
    place = [world.prompt_of(scene) for scene in world.all_scenes()].index(prompt)
    prompts, simple = len(world.all_scenes()), len(course.simple)
    long = [index * prompts + place for index in range(len(course.about_prompt))]
    short = [simple + index for index in range(len(course.about_clip))]
    banks = [(course.long_bank, long), (course.short_bank, short)]
    with torch.inference_mode():
        clip = clip_states(judge.model, judge.processor, train_judge.to_pixels(clips))
        groups = [bank.ids[rows].expand(2, -1, -1) for bank, rows in banks]
        _, found = decode(judge.model, judge.processor, clip, groups)
        ends = [
            states[:, range(len(rows)), bank.last[rows]]
            for states, (bank, rows) in zip(found, banks, strict=True)
        ]
        expected = judge.model.lm_head(torch.cat(ends, dim=1)).log_softmax(-1)
    for item, row in zip(answered, expected, strict=True):
        assert isinstance(item, Answers)
        torch.testing.assert_close(item.yes_logit, row[:, course.yes], atol=1e-4, rtol=0)
        torch.testing.assert_close(item.no_logit, row[:, course.no], atol=1e-4, rtol=0)


def test_the_config_samples_clips_as_mp4_and_scores_all_their_frames(built, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = {
        "generator.path": built / "generator",
        "generator.steps": 2,
        "reward.judge": built / "judge",
        "reward.min_mass": 0,  # after two steps it says anything
        "prompts.train_limit": 2,
        "generate.candidates": 2,
        "generate.batch_size": 4,
        "run_dir": tmp_path / "run",
        "store": tmp_path / "store",
    }
    config = load(CONFIG, [f"{key}={value}" for key, value in overrides.items()])
    checklist = Checklist.from_yaml(config.reward.checklist)
    assert set(oracle.DIMENSIONS) == set(checklist.dimensions)
    assert config.objectives.dims["dynamic"].role == "hold"
    run = resolve(config)
    run_stages(run, until="score")
    rows = read_table(*run.artifacts.candidates.shards("candidates"))
    clips = [run.artifacts.candidates.folder / row["media"] for row in rows]
    assert len(clips) == 4 and {clip.suffix for clip in clips} == {".mp4"}
    assert {len(load_media(clip, config.reward.frames).frames) for clip in clips} == {world.FRAMES}
    scores = read_scores(run.artifacts.scores)
    assert not scores.missing and scores.levels["dimension"][0] == checklist.dimensions
    cards = Models(config).reward("quickstart_video").score(clips, [row["prompt"] for row in rows])
    assert all(card.missing is None and set(card.dimensions) == set(oracle.DIMENSIONS) for card in cards)
