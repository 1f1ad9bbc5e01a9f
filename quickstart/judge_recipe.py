"""What the recipes of the bundled judges share: the renderer as annotator, and `mpo train-judge` at the end.

A batch of scenes is an int64 array [B, A]: a column for each attribute of a world, an index into its values.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.optim import AdamW
from transformers import get_cosine_schedule_with_warmup

from quickstart.recipe import Log
from quickstart.scenes import Attributes
from rewards.checklist import PROMPT, Checklist
from rewards.finetune import train_judge
from rewards.finetune_settings import read_training
from rewards.judge_metrics import JudgeReport

PROMPTED_ASKED, PARTS_ASKED, DIRECT_ASKED, PLAIN_ASKED = 3, 2, 3, 2  # questions of each kind about an item


@dataclass(frozen=True)
class Annotator:
    """The renderer, which knows what it has drawn: asks questions about scenes and answers them."""

    checklist: Checklist
    attributes: Attributes
    turns_on: Mapping[str, Sequence[str]]  # per question about a prompt, the attributes that decide it
    direct: Mapping[str, str]  # per attribute that a prompt names: "Is the object {}?"
    # Of scenes shown and asked for, each [B, A]: by question, whether yes is right, bool [B].
    truths: Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
    prompt_of: Callable[[np.ndarray], str]
    phrase_of: Callable[[str, np.ndarray], str]  # the part of a prompt on which a question turns
    keep: Mapping[str, float] = field(default_factory=dict)  # how often `asked` keeps what decides a question

    def asked(self, scenes: np.ndarray, question: str, rng: np.random.Generator) -> np.ndarray:
        """Return scenes [B, A] to prompt with, such that yes and no to `question` are evenly likely."""
        keep, turns_on = self.keep.get(question, 0.5), self.turns_on.get(question, ())
        asked, names = scenes.copy(), list(self.attributes)
        for name in self.direct:
            column, count = asked[:, names.index(name)], len(self.attributes[name])
            wrong = rng.random(len(scenes)) >= (keep if name in turns_on else 0.5)
            column[wrong] = (column[wrong] + rng.integers(1, count, wrong.sum())) % count
        return asked

    def annotate(self, scenes: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, dict[str, bool]]]:
        """Yield for each of scenes [B, A] a prompt, and some questions with their answers.

        The checklist's questions about the prompt, in which each attribute is right or wrong by chance; the
        same questions about parts of prompts; direct ones ("Is the object red?"); the checklist's others.
        """
        texts = {question.id: question.text for question in self.checklist.questions}
        about, plain = list(self.turns_on), [name for name in texts if name not in self.turns_on]
        asked, direct = self.asked(scenes, "", rng), self.asked(scenes, "", rng)
        parts = {name: self.asked(scenes, name, rng) for name in about}
        true, true_direct = self.truths(scenes, asked), self.truths(scenes, direct)
        true_parts = {name: self.truths(scenes, part)[name] for name, part in parts.items()}

        def some(of: Sequence[str], count: int) -> list[str]:
            return [of[index] for index in rng.permutation(len(of))[:count]]

        for row in range(len(scenes)):
            names = some(about, PROMPTED_ASKED) + some(plain, PLAIN_ASKED)
            answers = {texts[name]: bool(true[name][row]) for name in names}
            for name in some(about, PARTS_ASKED):
                text = texts[name].replace(PROMPT, self.phrase_of(name, parts[name][row]))
                answers[text] = bool(true_parts[name][row])
            for name in some(list(self.direct), DIRECT_ASKED):
                answers[self.direct_question(name, direct[row])] = bool(true_direct[name][row])
            yield self.prompt_of(asked[row]), answers

    def direct_question(self, attribute: str, scene: np.ndarray) -> str:
        """Return the question whether an attribute has the value that it has in a scene [A]."""
        value = scene[list(self.attributes).index(attribute)]
        return self.direct[attribute].format(self.attributes[attribute][value])

    def words(self, scenes: np.ndarray) -> list[str]:
        """Return texts that hold every word of questions about scenes [B, A], and of the answers."""
        prompts = [self.prompt_of(scene) for scene in scenes]
        asked = [question.text.replace(PROMPT, prompts[0]) for question in self.checklist.questions]
        direct = {self.direct_question(name, scene) for name in self.direct for scene in scenes}
        return [*asked, *prompts, *direct, "yes no"]


def write_annotations(
    table: Path,
    annotated: Iterable[tuple[str, dict[str, bool]]],
    media: np.ndarray,
    save: Callable[[np.ndarray, Path], None],
    suffix: str,
) -> None:
    """Write a .jsonl of item, prompt, question and answer, and beside it a folder of the items' files."""
    folder = table.with_suffix("")
    folder.mkdir(parents=True)
    with table.open("w") as lines:
        for number, (prompt, answers) in enumerate(annotated):
            item = f"{folder.name}/{number:05d}{suffix}"
            save(media[number], table.parent / item)
            for question, yes in answers.items():
                row = {"item": item, "prompt": prompt, "question": question, "answer": "yes" if yes else "no"}
                lines.write(json.dumps(row) + "\n")


def descend(
    name: str, modules: nn.Module, loss_of: Callable[[], Any], steps: int, peak: float, log: Log
) -> None:
    """Take `steps` of AdamW on `loss_of()`; the rate warms up over 100 steps, then falls as a cosine."""
    modules.train()
    optimizer = AdamW(modules.parameters(), lr=peak, weight_decay=0.02)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 2), steps)
    for step in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            log(f"{name} step {step + 1} of {steps}: loss {loss.item():.3f}")


def learn(
    out: Path,
    training: Path,
    made_by: dict[str, Any],
    prepare: Callable[[Path], None],
    overrides: Sequence[str],
) -> JudgeReport:
    """Have a judge learn its answers by `mpo train-judge training`, and write its folder `out`.

    `prepare` writes what it starts and learns from into a folder: `start/`, `train.jsonl` and
    `validation.jsonl`. They stay beside `out` and serve again when training was cut short, if `made_by`, what
    they depend on, is the same; `made_by["seed"]` is the training's seed, too, and `made_by["generator"]` a
    folder whose weights must also be the same. overrides: further settings, `key=value`.
    """
    if out.exists():
        raise FileExistsError(f"{out}: exists already; remove it or name another folder")
    made_by = {**made_by, "weights": _digest(Path(made_by["generator"]))}
    course = out.with_name(f"{out.name}.course")
    note = course / "made_by.json"
    if not note.is_file() or json.loads(note.read_text()) != made_by:
        part = course.with_name(f"{course.name}.part")
        for folder in (course, part):
            shutil.rmtree(folder, ignore_errors=True)
        prepare(part)
        (part / note.name).write_text(json.dumps(made_by))
        part.rename(course)
    paths = {
        "judge": course / "start",
        "data": course / "train.jsonl",
        "validation": course / "validation.jsonl",
        "out": out,
    }
    settings = [f"{name}={path}" for name, path in paths.items()]
    return train_judge(read_training(training, [*settings, f"seed={made_by['seed']}", *overrides]))


def _digest(folder: Path) -> str:
    """Return a hash of the weights in a pipeline's folder."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        state.update(path.read_bytes())
    return state.hexdigest()
