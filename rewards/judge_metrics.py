"""How well a judge answers: per question accuracy, balanced accuracy, calibration, and what always
guessing gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

_BINS = 10


@dataclass(frozen=True)
class QuestionAccuracy:
    """Agreement with people on one question, or on all.

    balanced: mean of the accuracy on yes and on no, None where one does not occur. calibration: expected
    calibration error of the answer given, over ten bins of its probability. majority: accuracy of always
    giving the more frequent answer. said_yes: share of yes among the judge's answers.
    """

    answers: int
    accuracy: float
    balanced: float | None
    calibration: float
    majority: float
    said_yes: float


@dataclass(frozen=True)
class JudgeReport:
    """Accuracy by question, the accuracy over all answers, and balanced accuracy averaged over questions."""

    questions: dict[str, QuestionAccuracy]
    overall: QuestionAccuracy
    balanced: float
    missing: int  # items that the judge could not answer

    def to_dict(self) -> dict:
        return asdict(self)


def measure_answers(
    questions: Sequence[str], asked: Sequence[int], p_yes, truth, missing: int = 0
) -> JudgeReport:
    """Report of answers: `asked` [A] indexes `questions`, `p_yes` [A] is P(yes), `truth` [A] people's
    answers."""
    asked, p_yes, truth = np.asarray(asked), np.asarray(p_yes, dtype=float), np.asarray(truth, dtype=bool)
    if not len(asked):
        raise ValueError("judge: no answer to measure")
    rows = {index: asked == index for index in np.unique(asked).tolist()}
    found = {questions[index]: _accuracy(p_yes[row], truth[row]) for index, row in rows.items()}
    balanced = [entry.balanced for entry in found.values() if entry.balanced is not None]
    overall = _accuracy(p_yes, truth)
    return JudgeReport(found, overall, float(np.mean(balanced)) if balanced else overall.accuracy, missing)


def _accuracy(p_yes: np.ndarray, truth: np.ndarray) -> QuestionAccuracy:
    said = p_yes > 0.5
    right = said == truth
    sides = [right[truth == answer].mean() for answer in (False, True) if (truth == answer).any()]
    return QuestionAccuracy(
        answers=len(truth),
        accuracy=float(right.mean()),
        balanced=float(np.mean(sides)) if len(sides) == 2 else None,
        calibration=calibration_error(np.where(said, p_yes, 1 - p_yes), right),
        majority=float(max(truth.mean(), 1 - truth.mean())),
        said_yes=float(said.mean()),
    )


def calibration_error(confidence, right) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): |confidence - accuracy|, averaged
    over ten bins."""
    confidence, right = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidence))
