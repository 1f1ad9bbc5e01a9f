"""The judge itself as the alignment feature, in the place of VQAScore."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.judges.base import Failure, Judge
from rewards.media import Media

# VQAScore's question (Lin et al. 2024, arXiv 2404.01291), as VisionReward asks it.
QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'


class JudgeAlignment:
    """P(yes) of a judge to VQAScore's question: no second model, and not the release's score."""

    def __init__(self, judge: Judge):
        self.judge = judge
        self.name = judge.name
        self.fingerprint = f"alignment {judge.fingerprint}"

    def measure(self, media: Sequence[Media], prompts: Sequence[str]) -> list[float | Failure]:
        """P(yes) in [0, 1] for each medium and its prompt."""
        answers = self.judge.answer(media, [[QUESTION.format(prompt=prompt)] for prompt in prompts])
        return [result if isinstance(result, Failure) else result.p_yes.item() for result in answers]

    def notes(self, prompt: str) -> tuple[str, ...]:
        """Nothing: the whole prompt is read."""
        return ()
