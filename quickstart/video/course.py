"""What the bundled video judge is taught: scenes, prompts to ask about them, and the loss on the answers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from quickstart.video.judge import QuestionBank, decode, new_model, new_tokenizer
from quickstart.video.questions import simple_questions
from quickstart.video.world import ATTRIBUTES, COLUMN, PROMPTED, all_scenes, prompt_of, right
from rewards.checklist import PROMPT, Checklist
from rewards.cogvlm2.modeling import CogVLMVideoForCausalLM
from rewards.cogvlm2.processing import CogVLM2Processor

CHECKLIST = Path(__file__).parents[2] / "configs" / "checklists" / "quickstart_video.yaml"
DEFECT = {"jitter": 0.4, "freeze": 0.55, "fade": 0.4, "recolour": 0.4, "reshape": 0.4}  # shares of clips


def random_scenes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return scenes [B, 10] with every named attribute evenly likely, and defects at their shares."""
    scenes = np.stack([rng.integers(0, len(values), count) for values in ATTRIBUTES.values()], axis=1)
    for name, share in DEFECT.items():
        defect = rng.integers(1, len(ATTRIBUTES[name]), count)
        scenes[:, COLUMN[name]] = np.where(rng.random(count) < share, defect, 0)
    return scenes


def random_asked(scenes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return scenes [B, 10] to prompt with: each attribute that a prompt names is right in half of them."""
    asked = scenes.copy()
    for name in PROMPTED:
        column, count = asked[:, COLUMN[name]], len(ATTRIBUTES[name])
        wrong = rng.random(len(scenes)) < 0.5
        column[wrong] = (column[wrong] + rng.integers(1, count, wrong.sum())) % count
    return asked


def prompt_index(asked: np.ndarray) -> np.ndarray:
    """Return where scenes [B, 10] lie in `all_scenes()`."""
    columns = [asked[:, COLUMN[name]] for name in PROMPTED]
    return np.ravel_multi_index(columns, [len(ATTRIBUTES[name]) for name in PROMPTED])


@dataclass
class Asked:
    """K questions about each of B clips: token ids [B, K, T], which of their tokens answer [B, K, A], the
    right answers' ids [B, K, A] and how much each counts [B, K, A]."""

    ids: Tensor
    at: Tensor
    answers: Tensor
    weights: Tensor


class Course:
    """All questions that the judge is taught, and batches of them."""

    def __init__(self, checklist: Checklist):
        self.checklist, self.simple = checklist, simple_questions()
        texts = {question.id: question.text for question in checklist.questions}
        self.about_prompt = [name for name, text in texts.items() if PROMPT in text]
        self.about_clip = [name for name, text in texts.items() if PROMPT not in text]
        prompts = [prompt_of(scene) for scene in all_scenes()]
        short = [text for text, _, _ in self.simple] + [texts[name] for name in self.about_clip]
        long = [texts[name].replace(PROMPT, prompt) for name in self.about_prompt for prompt in prompts]
        self.tokenizer = new_tokenizer([*short, *long])
        self.processor = CogVLM2Processor(self.tokenizer, new_model(self.tokenizer).config)
        self.short_bank, self.long_bank = (QuestionBank.of(self.processor, texts) for texts in (short, long))
        token = self.tokenizer.convert_tokens_to_ids
        self.values = {name: torch.tensor(token(list(ATTRIBUTES[name]))) for name in PROMPTED}
        self.no, self.yes = token(["no", "yes"])
        scenes = random_scenes(20_000, np.random.default_rng(0))
        self.share_yes = self._short_truth(scenes).mean(0)

    def _short_truth(self, scenes: np.ndarray) -> np.ndarray:
        """Return the true answers [B, n] to the questions of the short bank."""
        columns = []
        for _, name, value in self.simple:
            asked = scenes.copy()
            asked[:, COLUMN[name]] = value
            columns.append(right(scenes, asked)[name])
        true = right(scenes, scenes)
        return np.stack([*columns, *(true[name] for name in self.about_clip)], axis=1)

    def short(self, scenes: np.ndarray, questions: int, rng: np.random.Generator) -> Asked:
        """Return questions without a prompt; yes and no count alike, and so do the two kinds of question."""
        count, simple = len(scenes), len(self.simple)
        rows = rng.integers(0, simple, (count, questions))
        of_checklist = rng.random(rows.shape) < 0.6
        rows[of_checklist] = simple + rng.integers(0, len(self.about_clip), of_checklist.sum())
        yes = np.take_along_axis(self._short_truth(scenes), rows, axis=1)
        share = self.share_yes[rows]
        weights = np.where(yes, 0.5 / share, 0.5 / (1 - share))
        index = torch.from_numpy(rows)
        return self._asked(self.short_bank.ids[index], self.short_bank.last[index][..., None], yes, weights)

    def prompted(self, scenes: np.ndarray, questions: int, rng: np.random.Generator) -> Asked:
        """Return questions about a prompt, another one each.

        Every word of the prompt that names an attribute is answered, too: does the clip show it? The model
        learns to compare much sooner so than from the final answer alone.
        """
        count, prompts = len(scenes), len(all_scenes())
        number = rng.integers(0, len(self.about_prompt), (count, questions))
        repeated = scenes.repeat(questions, axis=0)
        asked = random_asked(repeated, rng)
        true = right(repeated, asked)
        words = np.stack([true[name] for name in PROMPTED], axis=1).reshape(count, questions, -1)
        final = np.stack([true[name] for name in self.about_prompt], axis=1).reshape(count, questions, -1)
        final = np.take_along_axis(final, number[..., None], axis=2)
        rows = torch.from_numpy(number * prompts + prompt_index(asked).reshape(count, questions))
        ids = self.long_bank.ids[rows]
        named = [torch.isin(ids, self.values[name]).int().argmax(-1) for name in PROMPTED]
        at = torch.stack([self.long_bank.last[rows], *named], dim=-1)
        yes = np.concatenate([final, words], axis=2)
        return self._asked(ids, at, yes, np.ones((count, questions)))

    def _asked(self, ids: Tensor, at: Tensor, yes: np.ndarray, weights: np.ndarray) -> Asked:
        answers = torch.from_numpy(np.where(yes, self.yes, self.no)).view(at.shape)
        weights = torch.from_numpy(weights).float()[..., None].expand(at.shape)
        return Asked(ids, at, answers, weights)

    def loss(
        self, model: CogVLMVideoForCausalLM, clip: Tensor, groups: list[Asked]
    ) -> tuple[Tensor, Tensor, float]:
        """Return the decoder's states of the clips [B, P, D], the weighted cross-entropy of the answers, and
        the share of final answers that are right."""
        states, found = decode(model, self.processor, clip, [group.ids for group in groups])
        losses, right_ones = [], []
        for group, hidden in zip(groups, found, strict=True):
            hidden = hidden.gather(2, group.at[..., None].expand(*group.at.shape, hidden.shape[-1]))
            logits = model.lm_head(hidden)
            loss = cross_entropy(logits.flatten(0, -2), group.answers.flatten(), reduction="none")
            loss = loss.view(group.at.shape) * group.weights
            losses.append(loss[..., 0].mean() + loss[..., 1:].sum(-1).mean())
            said = logits[..., 0, [self.no, self.yes]].argmax(-1) == 1
            right_ones.append((said == (group.answers[..., 0] == self.yes)).float().mean())
        return states, torch.stack(losses).sum(), float(torch.stack(right_ones).mean())
