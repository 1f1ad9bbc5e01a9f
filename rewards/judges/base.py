"""The judge: media and questions in, yes and no at the first answer position out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rewards.media import Media, load_media

Source = str | Path | Image.Image | np.ndarray | Media  # what `load_media` takes


@dataclass(frozen=True)
class Answers:
    """A judge's answers to the Q questions of one item, float32 on the CPU.

    yes_logit, no_logit [Q]: log-probability of all spellings of yes, and of no, at the first answer position,
    summed over spellings (logsumexp). Their difference decides the answer.
    """

    yes_logit: Tensor
    no_logit: Tensor

    @property
    def p_yes(self) -> Tensor:
        """P(yes) among yes and no, [Q]."""
        return torch.sigmoid(self.yes_logit - self.no_logit)

    @property
    def outside(self) -> Tensor:
        """Probability of first tokens that are neither yes nor no, [Q]."""
        return (1 - self.yes_logit.exp() - self.no_logit.exp()).clamp(min=0)


@dataclass(frozen=True)
class Failure:
    """An item that could not be judged, and why, in one line."""

    reason: str


class Judge(Protocol):
    """Answers yes/no questions about media."""

    name: str  # for messages: the folder or hub id
    fingerprint: str  # hash of weights, template and whatever else changes an answer
    modality: str  # image | video
    frames: str  # frame rule for clips, as `rewards.media.load_media` takes it

    def answer(self, media: Sequence[Media], questions: Sequence[Sequence[str]]) -> list[Answers | Failure]:
        """Per item its answers, or why it has none; `questions[i]` are those about `media[i]`."""
        ...


class Asking:
    """`answer` as people call it: one medium or several, as files or in memory; a judge adds `_answer`."""

    def answer(
        self, media: Source | Sequence[Source], questions: str | Sequence[str] | Sequence[Sequence[str]]
    ) -> Answers | list[Answers | Failure]:
        """The answers about one medium; of a list of media, per item its answers or why it has none.

        A medium is a path, a PIL image, a uint8 array [T, H, W, 3], or `Media`. questions: one, a list that
        every medium is asked, or a list for each. ValueError for a single medium that cannot be judged.
        """
        if not isinstance(media, list | tuple):
            asked = [questions] if isinstance(questions, str) else questions
            (answers,) = self.answer([media], [asked])
            if isinstance(answers, Failure):
                raise ValueError(answers.reason)
            return answers
        asked = [questions] if isinstance(questions, str) else list(questions)
        if all(isinstance(question, str) for question in asked):
            asked = [asked] * len(media)
        if len(asked) != len(media):
            raise ValueError(f"answer: {len(media)} media and {len(asked)} lists of questions")
        results: list[Answers | Failure | None] = [None] * len(media)
        loaded: dict[int, Media] = {}
        for row, source in enumerate(media):
            try:
                loaded[row] = load_media(source, self.frames)
            except ValueError as error:
                results[row] = Failure(str(error))
        found = self._answer(list(loaded.values()), [asked[row] for row in loaded])
        for row, answers in zip(loaded, found, strict=True):
            results[row] = answers
        return results


class FeatureModel(Protocol):
    """Measures a number that a checklist takes in beside the answers, such as VQAScore, in [0, 1]."""

    name: str
    fingerprint: str

    def measure(self, media: Sequence[Media], prompts: Sequence[str]) -> list[float | Failure]:
        """The number of each pair of `media[i]` and `prompts[i]`, or why it has none: as many as there are
        media.
        """
        ...

    def notes(self, prompt: str) -> Sequence[str]:
        """What is to be said beside a value for this prompt, such as that it was cut."""
        ...
