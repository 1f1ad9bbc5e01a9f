"""Scorecard: what one item got, at every level, and how sure the judge was."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from rewards.checklist import LEVELS, Checklist, Scores


@dataclass(frozen=True)
class Scorecard:
    """One item's scores. A missing item has a reason in `missing` and no numbers.

    levels: level -> name -> contribution; every level adds up to the total.
    p_yes, outside: per question id, P(yes) among yes and no, and the probability that went to neither.
    answers: per question id, the coded and gated answer.
    notes: what the reader should know, such as a truncated clip.
    """

    item: str
    prompt: str
    reward: str
    reduction: str
    coding: str
    levels: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)
    features: dict[str, float] = field(default_factory=dict)
    p_yes: dict[str, float] = field(default_factory=dict)
    outside: dict[str, float] = field(default_factory=dict)
    missing: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """The reward; NaN for a missing item."""
        return self.levels["total"]["total"] if self.missing is None else float("nan")

    @property
    def dimensions(self) -> dict[str, float]:
        """Contribution of each dimension; empty for a missing item."""
        return self.level("dimension")

    @property
    def subdimensions(self) -> dict[str, float]:
        """Contribution of each sub-dimension; empty for a missing item."""
        return self.level("subdimension")

    @property
    def questions(self) -> dict[str, float]:
        """Contribution of each scored question and feature; empty for a missing item."""
        return self.level("question")

    def level(self, name: str) -> dict[str, float]:
        """Contribution by name at a level: total | dimension | subdimension | question; empty for a
        missing item.
        """
        return self.levels.get(name, {})

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "notes": list(self.notes)}


def scorecard(
    item: str,
    prompt: str,
    checklist: Checklist,
    scores: Scores,
    p_yes: Tensor,
    outside: Tensor,
    features: dict[str, float],
    notes: tuple[str, ...] = (),
) -> Scorecard:
    """The scorecard of one item from its scores (no leading dimension), P(yes) [Q] and outside mass [Q]."""
    levels = {}
    for level in LEVELS:
        names, values = scores.level(level)
        levels[level] = dict(zip(names, values.tolist(), strict=True))
    return Scorecard(
        item=item,
        prompt=prompt,
        reward=checklist.name,
        reduction=checklist.reduction,
        coding=checklist.coding,
        levels=levels,
        answers=dict(zip(checklist.ids, scores.answers.tolist(), strict=True)),
        features=features,
        p_yes=dict(zip(checklist.ids, p_yes.tolist(), strict=True)),
        outside=dict(zip(checklist.ids, outside.tolist(), strict=True)),
        notes=notes,
    )
