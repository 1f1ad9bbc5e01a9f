"""The bundled judge: its questions, its recipe, and its shipped weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from quickstart import world
from quickstart.course import Course, random_asked, random_scenes
from quickstart.judge import question_logits, visual_tokens
from quickstart.questions import TURNS_ON, truths
from quickstart.train_generator import new_pipeline
from quickstart.train_judge import CHECKLIST, main, to_pixels
from rewards.build import load_judge
from rewards.checklist import PROMPT, Checklist
from rewards.judges.base import Answers
from rewards.media import load_media

FOLDER = Path(__file__).parents[2] / "quickstart" / "weights" / "judge"


def scene(**values: str) -> np.ndarray:
    """A sharp, clean small red circle on the left of a white background, but for `values`; [1, 8]."""
    shown = {
        **{"shape": "circle", "colour": "red", "size": "small", "place": "left", "background": "white"},
        **{"blur": "none", "specks": "none", "present": "yes", **values},
    }
    return np.array([[world.ATTRIBUTES[name].index(shown[name]) for name in world.NAMES]])


def answers(shown: np.ndarray, asked: np.ndarray) -> dict[str, bool]:
    return {name: bool(value[0]) for name, value in truths(shown, asked).items()}


@pytest.fixture(scope="module")
def course() -> Course:
    return Course(Checklist.from_yaml(CHECKLIST))


@pytest.fixture(scope="module")
def judge():
    return load_judge(FOLDER)


def test_checklist_has_the_structure_of_visionreward():
    checklist = Checklist.from_yaml(CHECKLIST)
    assert len(checklist.dimensions) >= 4 and len(checklist.subdimensions) > len(checklist.dimensions)
    assert len(checklist.questions) >= 10 and checklist.gates == ("object",)
    assert set(truths(scene(), scene())) == set(checklist.ids)
    assert {question.id for question in checklist.questions if PROMPT in question.text} == set(TURNS_ON)


def test_a_perfect_picture_is_answered_yes_throughout():
    assert all(answers(scene(), scene()).values())


def test_one_wrong_attribute_turns_the_questions_that_depend_on_it():
    turned = {name for name, yes in answers(scene(colour="blue"), scene()).items() if not yes}
    assert turned == {"colour", "subject_exactly"}
    both = answers(scene(colour="blue", shape="star"), scene())
    assert {name for name, yes in both.items() if not yes} == {
        "colour",
        "shape",
        "subject_exactly",
        "subject_at_all",
    }


def test_graded_questions_tell_slight_from_strong():
    slight, strong = answers(scene(blur="slight"), scene()), answers(scene(blur="strong"), scene())
    assert (slight["very_clear"], slight["clear_at_all"]) == (False, True)
    assert (strong["very_clear"], strong["clear_at_all"]) == (False, False)
    few, many = answers(scene(specks="few"), scene()), answers(scene(specks="many"), scene())
    assert (few["very_clean"], few["clean_at_all"]) == (False, True)
    assert (many["very_clean"], many["clean_at_all"]) == (False, False)


def test_without_an_object_only_background_and_cleanliness_can_be_right():
    yes = {name for name, value in answers(scene(present="no"), scene()).items() if value}
    assert yes == {"background", "very_clean", "clean_at_all"}


@pytest.mark.parametrize("question", sorted(TURNS_ON))
def test_prompts_are_drawn_so_that_yes_and_no_are_evenly_likely(question):
    rng = np.random.default_rng(0)
    scenes = random_scenes(20_000, rng)
    scenes[:, world.COLUMN["present"]] = 1
    share = truths(scenes, random_asked(scenes, question, rng))[question].mean()
    assert share == pytest.approx(0.5, abs=0.015)  # four standard errors of 20,000 draws: 4 * .5 / 141 = .014


def test_words_of_a_prompt_are_supervised_where_they_stand(course):
    rng = np.random.default_rng(0)
    asked = course.prompted(random_scenes(32, rng), 3, rng)
    ids = course.bank.ids[asked.rows].gather(2, asked.at)
    names = course.processor.tokenizer.convert_ids_to_tokens(ids.reshape(-1, 6)[:, 1:].flatten().tolist())
    for word, attribute in zip(names, list(world.PROMPTED) * (32 * 3), strict=True):
        assert word in world.ATTRIBUTES[attribute]


def test_training_asks_token_for_token_what_the_driver_asks(course, judge):
    rng = np.random.default_rng(1)
    scenes = random_scenes(2, rng)
    pictures = world.render(scenes, rng)
    prompt = world.prompt_of(scenes[0])
    media = [load_media(Image.fromarray(picture)) for picture in pictures]
    answered = judge.answer(media, [course.checklist.ask(prompt)] * 2)
    rows = np.stack([course.row(name, scenes[:1].repeat(2, axis=0)) for name in course.start], axis=1)
    rows = torch.from_numpy(rows)
    with torch.inference_mode():
        visual = visual_tokens(judge.model, to_pixels(pictures))
        logits = question_logits(
            judge.model, visual, course.bank.ids[rows], course.bank.last[rows][..., None]
        )
    probabilities = logits[:, :, 0].log_softmax(-1)
    for item, expected in zip(answered, probabilities, strict=True):
        assert isinstance(item, Answers)
        torch.testing.assert_close(item.yes_logit, expected[:, course.yes], atol=1e-4, rtol=0)
        torch.testing.assert_close(item.no_logit, expected[:, course.no], atol=1e-4, rtol=0)


def test_shipped_weights_are_small_and_in_half_precision():
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size <= 4_500_000
    with safe_open(path, "pt") as weights:
        types = {weights.get_slice(name).get_dtype() for name in weights.keys()}
    assert types <= {"F16", "I64"}  # I64: the counters of batch normalisation


@pytest.mark.xfail(
    strict=True, reason="the first judge is right on place in 73 % only: it is to be trained longer"
)
def test_shipped_judge_is_right_about_renders_and_says_yes_or_no(judge):
    rng = np.random.default_rng(7)
    checklist = Checklist.from_yaml(CHECKLIST)
    scenes = random_scenes(96, rng)
    asked = random_asked(scenes, "subject_exactly", rng)
    media = [load_media(Image.fromarray(picture)) for picture in world.render(scenes, rng)]
    answered = judge.answer(media, [checklist.ask(world.prompt_of(row)) for row in asked])
    said = torch.stack([item.p_yes for item in answered]) > 0.5
    truth = torch.from_numpy(np.stack([truths(scenes, asked)[name] for name in checklist.ids], axis=1))
    agreement = (said == truth).float().mean(0)
    assert agreement.mean() >= 0.96 and agreement.min() >= 0.9
    assert max(float(item.outside.max()) for item in answered) < 0.01


def test_recipe_is_seeded_and_writes_a_folder_that_loads(tmp_path):
    torch.manual_seed(0)
    new_pipeline().save_pretrained(tmp_path / "generator")
    tiny = {"generator": tmp_path / "generator", "pictures": 8, "tower_steps": 2, "steps": 2, "threads": 1}
    for name, seed in (("once", 0), ("again", 0), ("other", 1)):
        main(tmp_path / name, seed=seed, **tiny)
    once, again, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "again", "other")
    )
    assert once == again != other
    assert load_judge(tmp_path / "once").words.yes == load_judge(FOLDER).words.yes


def test_an_unknown_word_or_a_huge_prompt_is_answered_too(judge):
    checklist = Checklist.from_yaml(CHECKLIST)
    media = load_media(Image.fromarray(world.render(scene(), np.random.default_rng(0))[0]))
    for prompt in ('a "zebra" 😀\non a moon', "red " * 500):
        (item,) = judge.answer([media], [checklist.ask(prompt)])
        assert bool(item.p_yes.isfinite().all())
