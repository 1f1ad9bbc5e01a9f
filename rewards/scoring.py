"""Both items of every preference pair, scored: gaps for a benchmark, answer differences for a fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from rewards.checklist import Checklist
from rewards.preferences import Preferences
from rewards.scorecard import Scorecard
from rewards.tables import check_missing


class Scorer(Protocol):
    """A `VisionReward`, or a baseline that gives scorecards in the same way."""

    def stream(self, media: Sequence, prompts: Sequence[str]) -> Iterator[Scorecard]: ...


def score_pairs(
    reward: Scorer, pairs: Preferences, allow_missing: float = 0.05
) -> list[tuple[Scorecard, Scorecard]]:
    """Scorecards of both items of each pair; an item that occurs twice with one prompt is scored once.

    Pairs with an item that cannot be scored are listed; more than the share `allow_missing` is a ValueError.
    """
    sides = [*zip(pairs.first, pairs.prompts, strict=True), *zip(pairs.second, pairs.prompts, strict=True)]
    distinct = list(dict.fromkeys(sides))
    cards = reward.stream([item for item, _ in distinct], [prompt for _, prompt in distinct])
    by_item = dict(zip(distinct, cards, strict=True))
    scored = [by_item[side] for side in sides]
    both = list(zip(scored[: len(pairs)], scored[len(pairs) :], strict=True))
    reasons = list(dict.fromkeys(card.missing for card in scored if card.missing))
    lost = sum(bool(first.missing or second.missing) for first, second in both)
    check_missing(pairs.name, reasons, lost, len(pairs), allow_missing)
    return both


def level_scores(cards: Sequence[tuple[Scorecard, Scorecard]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """First and second score [M] of "total" and of every dimension; NaN where an item is missing."""
    names = {name: None for pair in cards for card in pair for name in card.dimensions}
    columns = {"total": [[card.total for card in pair] for pair in cards]}
    for name in names:
        columns[name] = [[card.dimensions.get(name, np.nan) for card in pair] for pair in cards]
    return {name: tuple(np.array(values, dtype=float).T) for name, values in columns.items()}


def learnable(checklist: Checklist) -> list[str]:
    """Ids of the columns that get a weight: features, and questions that are no gate."""
    gates = set(checklist.gates)
    ids = [feature.id for feature in checklist.features]
    return ids + [question.id for question in checklist.questions if question.id not in gates]


def answer_differences(
    cards: Sequence[tuple[Scorecard, Scorecard]], pairs: Preferences, checklist: Checklist
) -> tuple[np.ndarray, np.ndarray]:
    """Differences [M', columns], preferred minus other, of the pairs that are no tie and complete; and
    which they are.

    Columns as in `learnable`: features as measured, answers coded and gated (0 where the gate is "no").
    """
    names = learnable(checklist)
    rows = [
        row
        for row, (pair, verdict) in enumerate(zip(cards, pairs.verdicts, strict=True))
        if verdict != 0 and not any(card.missing for card in pair)
    ]
    if not rows:
        raise ValueError(f"{pairs.name}: no pair has a preference and two scored items; nothing to fit")
    values = np.array([[_values(card, names) for card in cards[row]] for row in rows])
    return (values[:, 0] - values[:, 1]) * pairs.verdicts[rows, None], np.array(rows)


def _values(card: Scorecard, names: Sequence[str]) -> list[float]:
    return [card.features[name] if name in card.features else card.answers[name] for name in names]
