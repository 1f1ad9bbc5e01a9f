"""The bundled judge: its questions, its recipe, and its shipped weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from quickstart import judge_recipe, world
from quickstart.course import CHECKLIST, annotator, random_scenes
from quickstart.judge import new_processor
from quickstart.questions import TURNS_ON, truths
from quickstart.train_generator import new_pipeline
from quickstart.train_judge import TRAINING, main
from rewards.build import load_judge
from rewards.checklist import PROMPT, Checklist
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
    share = truths(scenes, annotator().asked(scenes, question, rng))[question].mean()
    assert share == pytest.approx(0.5, abs=0.015)  # four standard errors of 20,000 draws: 4 * .5 / 141 = .014


def test_annotations_are_true_and_of_every_kind():
    rng = np.random.default_rng(0)
    texts = {question.text: question.id for question in Checklist.from_yaml(CHECKLIST).questions}
    scenes = random_scenes(300, rng)
    kinds = {"prompted": 0, "part": 0, "direct": 0, "plain": 0}
    for shown, (prompt, annotated) in zip(scenes, annotator().annotate(scenes, rng), strict=True):
        true = answers(shown[None], world.scenes_of([prompt]))
        for question, yes in annotated.items():
            if question in texts:
                assert yes == true[texts[question]]
                kinds["prompted" if PROMPT in question else "plain"] += 1
            elif '"' in question:
                kinds["part"] += 1
                if question.startswith("Is the place") and shown[world.COLUMN["present"]]:
                    word = world.ATTRIBUTES["place"][shown[world.COLUMN["place"]]]
                    assert yes == (f'{word}"' in question)
            else:
                kinds["direct"] += 1
                if not shown[world.COLUMN["present"]]:
                    assert question.startswith("Is the background") or not yes
                    continue
                shows = {world.ATTRIBUTES[name][shown[world.COLUMN[name]]] for name in world.PROMPTED}
                assert yes == (question.rstrip("?").split()[-1] in shows)
    assert min(kinds.values()) >= 2 * 270


def test_the_judge_knows_every_word_that_it_is_asked():
    rng = np.random.default_rng(0)
    teacher = annotator()
    tokenizer = new_processor(teacher.words(world.all_scenes())).tokenizer
    asked = [
        question.replace(PROMPT, prompt)
        for prompt, annotated in teacher.annotate(random_scenes(100, rng), rng)
        for question in annotated
    ]
    assert tokenizer.unk_token_id not in {token for row in tokenizer(asked)["input_ids"] for token in row}


def test_shipped_weights_are_small_and_in_half_precision():
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size <= 4_500_000
    with safe_open(path, "pt") as weights:
        types = {weights.get_slice(name).get_dtype() for name in weights.keys()}
    assert types <= {"F16", "I64"}  # I64: the counters of batch normalisation


def test_shipped_judge_is_right_about_renders_and_says_yes_or_no(judge):
    rng = np.random.default_rng(7)
    checklist = Checklist.from_yaml(CHECKLIST)
    scenes = random_scenes(96, rng)
    asked = annotator().asked(scenes, "subject_exactly", rng)
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
    tiny = {
        "generator": tmp_path / "generator",
        "pictures": 48,
        "validated": 4,
        "tower_steps": 4,
        "threads": 1,
    }
    steps = ["epochs=1", "batch_size=32", "micro_batch_size=32", "warmup_steps=1"]
    for name, seed in (("once", 0), ("again", 0), ("other", 1)):
        main(tmp_path / name / "judge", seed=seed, overrides=steps, **tiny)
    once, again, other = (
        (tmp_path / name / "judge" / "model.safetensors").read_bytes() for name in ("once", "again", "other")
    )
    assert once == again != other
    assert len(load_judge(tmp_path / "once" / "judge").words.yes) == 1
    before, after = (
        load_file(tmp_path / "once" / part / "model.safetensors") for part in ("judge.course/start", "judge")
    )
    moved = [not torch.equal(before[name].half(), after[name]) for name in before if "language_model" in name]
    assert len(moved) > 10 and all(moved)


def test_what_a_judge_learns_from_serves_again_unless_the_generator_has_changed(tmp_path, monkeypatch):
    weights = tmp_path / "generator" / "unet" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    made_by, prepared = {"seed": 0, "generator": str(tmp_path / "generator")}, []

    def prepare(folder):
        folder.mkdir()
        prepared.append(folder)

    monkeypatch.setattr(judge_recipe, "train_judge", lambda settings: None)
    for content in (b"one", b"one", b"two"):
        weights.write_bytes(content)
        judge_recipe.learn(tmp_path / "judge", TRAINING, made_by, prepare, ())
    assert len(prepared) == 2 and not prepared[1].exists() and (tmp_path / "judge.course").is_dir()


def test_an_unknown_word_or_a_huge_prompt_is_answered_too(judge):
    checklist = Checklist.from_yaml(CHECKLIST)
    media = load_media(Image.fromarray(world.render(scene(), np.random.default_rng(0))[0]))
    for prompt in ('a "zebra" 😀\non a moon', "red " * 500):
        (item,) = judge.answer([media], [checklist.ask(prompt)])
        assert bool(item.p_yes.isfinite().all())
