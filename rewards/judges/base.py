"""The judge: media and questions in, yes and no at the first answer position out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rewards.media import Media


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


class FeatureModel(Protocol):
    """Measures a number in [0, 1] that a checklist takes in beside the answers, such as VQAScore."""

    name: str
    fingerprint: str

    def measure(self, media: Sequence[Media], prompts: Sequence[str]) -> list[float | Failure]: ...
