"""An oracle as one more reward: facts about media, read by whoever knows the world, as certain answers."""

from collections.abc import Callable, Mapping, Sequence

import torch

from rewards.checklist import PROMPT, Checklist, Question
from rewards.judges.base import Answers, Failure
from rewards.media import PER_SECOND, Media


class FactOracle:
    """A judge that knows: asked "shape: PROMPT", it says whether the shape is as prompted.

    facts: from a medium and a prompt to which facts hold; its ValueError is the reason for no answer.
    """

    name = "oracle"

    def __init__(
        self,
        facts: Callable[[Media, str], Mapping[str, bool]],
        fingerprint: str,
        modality: str = "image",
        frames: str = PER_SECOND,
    ):
        self.facts = facts
        self.fingerprint = fingerprint
        self.modality = modality
        self.frames = frames

    def answer(self, media: Sequence[Media], questions: Sequence[Sequence[str]]) -> list[Answers | Failure]:
        """Return certain answers; a failure where a medium or a prompt is not of the oracle's world."""
        return [self._answer(item, asked) for item, asked in zip(media, questions, strict=True)]

    def _answer(self, media: Media, questions: Sequence[str]) -> Answers | Failure:
        facts, prompts = zip(*(question.split(": ", 1) for question in questions), strict=True)
        try:
            true = self.facts(media, prompts[0])
        except ValueError as error:
            return Failure(str(error))
        yes = torch.tensor([bool(true[fact]) for fact in facts])
        certain = torch.tensor([0.0, -torch.inf])  # log 1 and log 0
        return Answers(yes_logit=certain[(~yes).long()], no_logit=certain[yes.long()])


def facts_checklist(dimensions: Mapping[str, Sequence[str]]) -> Checklist:
    """Return the checklist by which a dimension's score is the share of its facts that are right."""
    facts = [
        Question(fact, f"{fact}: {PROMPT}", dimension, fact, weight=1 / len(names))
        for dimension, names in dimensions.items()
        for fact in names
    ]
    return Checklist("oracle", tuple(facts), coding="binary")
