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
from quickstart.judge_recipe import DIRECT_ASKED, PARTS_ASKED, PLAIN_ASKED, PROMPTED_ASKED
from quickstart.video import oracle, train_generator, train_judge, world
from quickstart.video.course import annotator, random_scenes
from quickstart.video.judge import embed_clips, new_tokenizer
from rewards.build import load_judge
from rewards.checklist import PROMPT, Checklist
from rewards.media import load_media

TINY = {
    "clips": 32,
    "validated": 2,
    "seeing_steps": 2,
    "threads": 1,
    "overrides": ["epochs=1", "batch_size=16", "micro_batch_size=16", "warmup_steps=1"],
}
ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart_video.yaml"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with a generator and a judge after two steps of each part."""
    folder = tmp_path_factory.mktemp("video")
    train_generator.build(folder / "generator", autoencoder_steps=2, denoiser_rounds=[2], copies=1)
    train_judge.main(folder / "judge", folder / "generator", **TINY)
    return folder


def test_tokenizer_makes_a_token_of_each_word_and_takes_any_text():
    tokenizer = train_generator.new_tokenizer()
    for prompt in map(world.prompt_of, world.all_scenes()):
        assert tokenizer.tokenize(prompt) == [f"\u2581{word}" for word in prompt.split()]
    odd = tokenizer('"quotes"\n\U0001f408 ' * 200, padding="max_length", truncation=True).input_ids
    assert len(odd) == train_generator.PROMPT_TOKENS


def test_built_generator_samples_clips_through_the_house(built):
    parts = [path for name in ("generator", "judge") for path in (built / name).rglob("*.safetensors")]
    size = sum(path.stat().st_size for path in parts)
    assert size < 6_000_000  # half precision; the bundled weights may take 12 MB
    config = GeneratorConfig(family="cogvideox", path=str(built / "generator"), steps=2, guidance_scale=1.0)
    generator = build_generator(config)
    conditioning = generator.encode_prompts([world.prompt_of(scene) for scene in world.all_scenes()[:2]])
    samples = generator.sample(conditioning, [1, 2])
    assert [clip.shape for clip in samples.media] == [(world.FRAMES, world.SIZE, world.SIZE, 3)] * 2
    assert generator.frame_rate == 8


def test_the_judge_is_seeded_and_loads_as_a_judge_of_clips(built, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        train_judge.main(tmp_path / name, built / "generator", seed=seed, **TINY)
    once, again, other = (
        load_file(folder / "model.safetensors")
        for folder in (built / "judge", tmp_path / "again", tmp_path / "other")
    )
    first, second = built / "judge.course", tmp_path / "again.course"
    for part in ("train.jsonl", "train/00063.mp4"):  # what the renderer drew
        assert (first / part).read_bytes() == (second / part).read_bytes()
    drawn = (load_media(folder / "train/00000.mp4", "uniform:9").frames for folder in (first, second))
    assert np.abs(np.subtract(*drawn, dtype=np.int16)).mean() < 0.5  # by the generator: its sums are MKL's

    def alike(first, second):
        return min(
            (first[name].float() - second[name].float()).abs().lt(5e-4).float().mean() for name in once
        )

    # MKL's sums depend on where a tensor lies in memory; Adam makes a step of what is nearly nothing
    assert alike(once, again) > 0.97
    assert alike(once, other) < 0.5
    assert load_judge(built / "judge").modality == "video"


def test_annotations_are_true_and_about_every_question():
    rng = np.random.default_rng(0)
    teacher = annotator()
    texts = {question.text: question.id for question in teacher.checklist.questions}
    scenes = random_scenes(200, rng)
    tokenizer = new_tokenizer(teacher.words(world.all_scenes()))
    met = set()
    for shown, (prompt, annotated) in zip(scenes, teacher.annotate(scenes, rng), strict=True):
        true = world.right(shown[None], world.scenes_of([prompt]))
        assert len(annotated) == PROMPTED_ASKED + PARTS_ASKED + DIRECT_ASKED + PLAIN_ASKED
        for question, yes in annotated.items():
            asked = tokenizer(question.replace(PROMPT, prompt)).input_ids
            assert tokenizer.unk_token_id not in asked, question
            if question in texts:
                assert yes == true[texts[question]][0]
                met.add(texts[question])
            elif question.startswith("Does it start with the colour"):
                assert yes == (world.ATTRIBUTES["colour"][shown[world.COLUMN["colour"]]] in question)
    assert met == set(teacher.checklist.ids) == set(true)


@pytest.mark.parametrize("question", world.PROMPTED)
def test_prompts_are_right_in_half_of_the_questions(question):
    rng = np.random.default_rng(0)
    scenes = random_scenes(20_000, rng)
    moves = scenes[:, world.COLUMN["freeze"]] < 2
    share = world.right(scenes, annotator().asked(scenes, question, rng))[question][moves].mean()
    assert share == pytest.approx(0.5, abs=0.018)  # 4 standard errors of 13,000 draws


def test_the_judge_learns_to_see_from_what_the_driver_shows_it(built):
    judge = load_judge(built / "judge", frames="uniform:9")
    clips = world.render(random_scenes(2, np.random.default_rng(1)), np.random.default_rng(1))
    prefix = judge.processor.prefix(world.FRAMES)
    with torch.inference_mode():
        seen = embed_clips(judge.model, judge.processor, train_judge.to_pixels(clips))
        for clip, embedded in zip(clips, seen, strict=True):
            pixels = judge.processor.pixels(load_media(clip, "uniform:9"))
            expected = judge.model.model.embed(prefix.input_ids[None], prefix.token_type_ids[None], pixels)
            torch.testing.assert_close(embedded[None], expected)


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
