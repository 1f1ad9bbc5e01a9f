"""What the bundled judge is taught: scenes, prompts to ask about them, and the loss on the answers."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from quickstart.judge import QuestionBank, new_processor, question_logits
from quickstart.questions import TURNS_ON, simple_questions, truths
from quickstart.world import ATTRIBUTES, COLUMN, NAMES, PROMPTED, all_scenes, prompt_of, right
from rewards.checklist import PROMPT, Checklist

ABSENT = 0.08  # share of pictures without an object
DEFECT = (0.5, 0.25, 0.25)  # of blur and of specks, by level


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


def prompt_index(asked: np.ndarray) -> np.ndarray:
    """Return where scenes [B, 8] lie in `all_scenes()`."""
    columns = [asked[:, COLUMN[name]] for name in PROMPTED]
    return np.ravel_multi_index(columns, [len(ATTRIBUTES[name]) for name in PROMPTED])


@dataclass
class Asked:
    """Questions about each of B pictures: the bank's rows [B, K], which of their tokens answer [B, K, P], the
    right answer tokens [B, K, P] and how much each counts [B, K, P]."""

    rows: Tensor
    at: Tensor
    answers: Tensor
    weights: Tensor


class Course:
    """All questions that the judge is taught, and batches of them."""

    def __init__(self, checklist: Checklist):
        self.checklist, self.simple = checklist, simple_questions()
        prompts = [prompt_of(scene) for scene in all_scenes()]
        texts = [text for text, _, _ in self.simple]
        self.start = {}
        for question in checklist.questions:
            self.start[question.id] = len(texts)
            named = prompts if PROMPT in question.text else prompts[:1]
            texts += [question.text.replace(PROMPT, prompt) for prompt in named]
        values = [value for name in NAMES for value in ATTRIBUTES[name]]
        self.processor = new_processor([*texts, *prompts, *values])
        self.bank = QuestionBank.of(self.processor, texts)
        token = self.processor.tokenizer.convert_tokens_to_ids
        self.values = {name: torch.tensor(token(list(ATTRIBUTES[name]))) for name in NAMES}
        self.no, self.yes = token(["no", "yes"])
        scenes = random_scenes(20_000, np.random.default_rng(0))
        self.balance = {name: self._balance(name, scenes) for name in self.start}

    def _balance(self, question: str, scenes: np.ndarray) -> tuple[float, float]:
        """Return the weights of a no and of a yes that make both count alike."""
        share = truths(scenes, random_asked(scenes, question, np.random.default_rng(0)))[question].mean()
        return 0.5 / (1 - share), 0.5 / share

    def row(self, question: str, asked: np.ndarray) -> np.ndarray:
        """Return the bank's rows [B] of a question of the checklist about prompts [B, 8]."""
        return self.start[question] + prompt_index(asked) * (question in TURNS_ON)

    def short(self, scenes: np.ndarray, questions: int, rng: np.random.Generator) -> Asked:
        """Return questions without a prompt: half of them simple ones, half of the checklist."""
        shape = (len(scenes), questions)
        rows, answers, weights = np.zeros(shape, int), np.zeros(shape, int), np.ones(shape)
        unprompted = [name for name in self.start if name not in TURNS_ON]
        number = rng.integers(0, len(self.simple), shape)
        number[:, questions // 2 :] = len(self.simple) + rng.integers(
            0, len(unprompted), number[:, questions // 2 :].shape
        )
        present = scenes[:, COLUMN["present"]] == 1
        for index, (_, name, value) in enumerate(self.simple):
            at = np.nonzero(number == index)
            shown = scenes[at[0], COLUMN[name]]
            rows[at] = index
            if value is None:
                answers[at] = self.values[name].numpy()[shown]
            else:
                answers[at] = np.where(shown == value, self.yes, self.no)
                weights[at] = np.where(shown == value, len(ATTRIBUTES[name]) / 2, 1.0)
            if name not in ("background", "specks"):
                weights[at] *= present[at[0]]
        truth = truths(scenes, scenes)
        for index, name in enumerate(unprompted, len(self.simple)):
            at = np.nonzero(number == index)
            yes = truth[name][at[0]]
            rows[at] = self.start[name]
            answers[at] = np.where(yes, self.yes, self.no)
            weights[at] = np.where(yes, *self.balance[name][::-1])
        return self._asked(rows, answers[..., None], weights[..., None])

    def prompted(self, scenes: np.ndarray, questions: int, rng: np.random.Generator) -> Asked:
        """Return questions about a prompt.

        Every word of the prompt that names an attribute is answered, too: does the picture show it? The model
        learns to compare much sooner so than from the final answer alone.
        """
        count, words = len(scenes), len(PROMPTED)
        rows, answers = np.zeros((count, questions), int), np.zeros((count, questions, words + 1), int)
        weights = np.ones(answers.shape)
        number = rng.integers(0, len(TURNS_ON), (count, questions))
        for index, name in enumerate(TURNS_ON):
            item, slot = np.nonzero(number == index)
            asked = random_asked(scenes[item], name, rng)
            rows[item, slot] = self.row(name, asked)
            as_asked = right(scenes[item], asked)
            yes = np.stack([truths(scenes[item], asked)[name], *(as_asked[n] for n in PROMPTED)], axis=1)
            answers[item, slot] = np.where(yes, self.yes, self.no)
            weights[item, slot, 0] = np.where(yes[:, 0], *self.balance[name][::-1])
        return self._asked(rows, answers, weights)

    def _asked(self, rows: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> Asked:
        rows = torch.from_numpy(rows)
        at = self.bank.last[rows][..., None]
        if answers.shape[-1] > 1:
            ids = self.bank.ids[rows]
            named = [torch.isin(ids, self.values[name]).int().argmax(-1) for name in PROMPTED]
            at = torch.cat([at, torch.stack(named, dim=-1)], dim=-1)
        return Asked(rows, at, torch.from_numpy(answers), torch.from_numpy(weights).float())

    def loss(self, model, visual: Tensor, asked: Asked) -> Tensor:
        """Return the weighted cross-entropy of the answers, and of the words of prompts beside them."""
        longest = int(self.bank.last[asked.rows].max()) + 1
        logits = question_logits(model, visual, self.bank.ids[asked.rows][..., :longest], asked.at)
        losses = cross_entropy(logits.flatten(0, -2), asked.answers.flatten(), reduction="none")
        losses = losses.view_as(asked.weights) * asked.weights
        return losses[..., 0].mean() + losses[..., 1:].sum(-1).mean()
