"""What the bundled judge is taught: scenes, and annotations of their pictures for `mpo train-judge`.

The annotator is the renderer: it knows what a picture shows.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from quickstart.questions import TURNS_ON, direct_question, phrase_of, truths
from quickstart.world import ATTRIBUTES, COLUMN, PROMPTED, all_scenes, prompt_of
from rewards.checklist import PROMPT, Checklist

ABSENT = 0.08  # share of pictures without an object
DEFECT = (0.5, 0.25, 0.25)  # of blur and of specks, by level
PROMPTED_ASKED, PARTS_ASKED, DIRECT_ASKED, PLAIN_ASKED = 3, 2, 3, 2  # questions of each kind about a picture


def random_scenes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return scenes [B, 8] with every attribute evenly likely, and defects and absence at their rates."""
    scenes = np.stack([rng.integers(0, len(values), count) for values in ATTRIBUTES.values()], axis=1)
    for defect in ("blur", "specks"):
        scenes[:, COLUMN[defect]] = rng.choice(3, count, p=DEFECT)
    scenes[:, COLUMN["present"]] = rng.random(count) >= ABSENT
    return scenes


def random_asked(scenes: np.ndarray, question: str, rng: np.random.Generator) -> np.ndarray:
    """Return scenes [B, 8] to prompt with, such that yes and no to `question` are evenly likely."""
    keep = {"subject_exactly": 0.5**0.5, "subject_at_all": 1 - 0.5**0.5}.get(question, 0.5)
    turns_on = TURNS_ON.get(question, ())
    asked = scenes.copy()
    for name in PROMPTED:
        column, count = asked[:, COLUMN[name]], len(ATTRIBUTES[name])
        wrong = rng.random(len(scenes)) >= (keep if name in turns_on else 0.5)
        column[wrong] = (column[wrong] + rng.integers(1, count, wrong.sum())) % count
    return asked


def annotate(
    checklist: Checklist, scenes: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, bool]]]:
    """Yield for every picture, of scenes [B, 8], a prompt and some questions with their answers.

    The checklist's questions about the prompt, in which each attribute is right or wrong by chance; the same
    questions about parts of prompts; direct ones ("Is the object red?"); and the checklist's others.
    """
    texts = {question.id: question.text for question in checklist.questions}
    about, plain = list(TURNS_ON), [name for name in texts if name not in TURNS_ON]
    asked, direct = random_asked(scenes, "", rng), random_asked(scenes, "", rng)
    parts = {name: random_asked(scenes, name, rng) for name in about}
    true = truths(scenes, asked)
    true_parts = {name: truths(scenes, part)[name] for name, part in parts.items()}
    for row, scene in enumerate(scenes):
        names = [about[index] for index in rng.permutation(len(about))[:PROMPTED_ASKED]]
        names += [plain[index] for index in rng.permutation(len(plain))[:PLAIN_ASKED]]
        answers = {texts[name]: bool(true[name][row]) for name in names}
        for index in rng.permutation(len(about))[:PARTS_ASKED]:
            name = about[index]
            text = texts[name].replace(PROMPT, phrase_of(name, parts[name][row]))
            answers[text] = bool(true_parts[name][row])
        if scene[COLUMN["present"]]:
            for index in rng.permutation(len(PROMPTED))[:DIRECT_ASKED]:
                column = COLUMN[PROMPTED[index]]
                value = direct[row, column]
                answers[direct_question(PROMPTED[index], value)] = bool(value == scene[column])
        yield prompt_of(asked[row]), answers


def write_annotations(
    table: Path, checklist: Checklist, pictures: np.ndarray, scenes: np.ndarray, rng: np.random.Generator
) -> None:
    """Write a .jsonl of item, prompt, question and answer, and beside it a folder of the pictures as PNG."""
    folder = table.with_suffix("")
    folder.mkdir(parents=True)
    with table.open("w") as lines:
        for number, (prompt, answers) in enumerate(annotate(checklist, scenes, rng)):
            item = f"{folder.name}/{number:05d}.png"
            Image.fromarray(pictures[number]).save(table.parent / item, compress_level=1)
            for question, yes in answers.items():
                row = {"item": item, "prompt": prompt, "question": question, "answer": "yes" if yes else "no"}
                lines.write(json.dumps(row) + "\n")


def words(checklist: Checklist) -> list[str]:
    """Return texts that hold every word of the judge's questions and answers."""
    direct = [direct_question(name, value) for name in PROMPTED for value in range(len(ATTRIBUTES[name]))]
    prompts = [prompt_of(scene) for scene in all_scenes()]
    asked = [question.text.replace(PROMPT, prompts[0]) for question in checklist.questions]
    return [*asked, *prompts, *direct, "yes no"]
