"""How well rewards agree with people: tau, which counts ties, and diff, which leaves them out.

tau is pairwise accuracy with ties (Deutsch et al. 2023, "Ties Matter", arXiv 2305.14324): a pair counts
as right when people prefer the item with the higher score, or when people tie it and the scores differ by
no more than a threshold; the threshold is the one that makes tau largest on these pairs (their tie
calibration). diff is the accuracy on the pairs that people did not tie, without a threshold; equal scores
count one half. VisionReward reports both (Table 2).

Shapes: M pairs, R resamples. A gap is the first item's score minus the second's; a verdict is 1, -1, or 0
for a tie.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from rewards.preferences import one_side
from rewards.regression import draw_counts
from rewards.weights import Estimate

logger = logging.getLogger(__name__)
_CHUNK = 2_000_000  # counts held at once


@dataclass(frozen=True)
class Agreement:
    """tau at `threshold` (score units) and diff, with 95 % bootstrap intervals; each resample finds its
    own threshold.
    """

    tau: Estimate
    threshold: float
    diff: Estimate


@dataclass(frozen=True)
class Comparison:
    """How much larger tau and diff of `reward` are than those of `other`, on the same resamples."""

    reward: str
    other: str
    tau: Estimate
    diff: Estimate


@dataclass(frozen=True)
class BenchmarkReport:
    """Agreement of every reward, in total and by dimension, on the pairs that all of them scored."""

    pairs: int
    ties: int
    left_out: int  # pairs that some reward could not score
    notes: list[str]
    agreement: dict[str, dict[str, Agreement]]  # reward -> "total" or a dimension -> agreement
    comparisons: list[Comparison]

    def to_dict(self) -> dict:
        return asdict(self)


def tau(gaps, verdicts) -> tuple[float, float]:
    """Largest pairwise accuracy with ties, and the least threshold on |gap| [M] that reaches it."""
    values, thresholds = _tau(np.asarray(gaps, float), np.asarray(verdicts), np.ones((1, len(gaps))))
    return float(values[0]), float(thresholds[0])


def diff(gaps, verdicts) -> float:
    """Accuracy on the pairs that people did not tie; equal scores count one half. NaN if there are none."""
    return float(_diff(np.asarray(gaps, float), np.asarray(verdicts), np.ones((1, len(gaps))))[0])


def _tau(gaps, verdicts, counts) -> tuple[np.ndarray, np.ndarray]:
    """tau [R] and threshold [R] of resamples that hold each pair counts [R, M] times.

    With the pairs in order of |gap|, a threshold makes a head of the list ties: right there are the pairs
    that people tied, in the tail those whose sign is right. Only the ends of runs of equal |gap| are
    possible thresholds.
    """
    size = np.abs(gaps)
    order = np.argsort(size, kind="stable")
    size, gaps, verdicts, counts = size[order], gaps[order], verdicts[order], counts[:, order]
    tied = np.cumsum(counts * (verdicts == 0), axis=1)
    right = np.cumsum(counts * ((verdicts != 0) & (np.sign(gaps) == verdicts)), axis=1)
    ends = np.flatnonzero(np.append(size[1:] > size[:-1], True))
    correct = tied[:, ends] + right[:, -1:] - right[:, ends]
    thresholds = size[ends]
    if thresholds[0] > 0:  # a threshold of 0 ties nothing here
        correct = np.concatenate([right[:, -1:], correct], axis=1)
        thresholds = np.append(0.0, thresholds)
    best = correct.argmax(axis=1)
    return correct[np.arange(len(counts)), best] / counts.sum(axis=1), thresholds[best]


def _diff(gaps, verdicts, counts) -> np.ndarray:
    preferred = verdicts != 0
    right = 0.5 * (np.sign(gaps) * verdicts + 1)
    total = counts @ preferred
    return np.divide(counts @ (right * preferred), total, out=np.full(len(counts), np.nan), where=total > 0)


def benchmark(
    scores: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    verdicts,
    groups=None,
    resamples: int = 1000,
    seed: int = 0,
) -> BenchmarkReport:
    """Agreement of `scores[reward][column] = (first [M], second [M])`, NaN where missing, with `verdicts`
    [M].

    Columns are "total" and the reward's dimensions. `groups` [M]: pairs of one prompt, resampled
    together. Pairs that any reward could not score are left out for all, so that rewards are compared on
    the same ones.
    """
    verdicts = np.asarray(verdicts)
    gaps = {
        reward: {name: np.subtract(*sides) for name, sides in columns.items()}
        for reward, columns in scores.items()
    }
    scored = np.all([np.isfinite(columns["total"]) for columns in gaps.values()], axis=0)
    notes = check_verdicts(verdicts[scored]) + [
        f"{reward} scores both items of every pair the same: does its judge answer everything alike? "
        "Check its template, precision and weights"
        for reward, columns in gaps.items()
        if not columns["total"][scored].any()
    ]
    groups = np.arange(len(verdicts)) if groups is None else np.asarray(groups)
    counts = draw_counts(groups[scored], np.random.default_rng(seed), resamples)
    counts = np.concatenate([np.ones_like(counts[:1]), counts])  # first row: the data themselves
    draws = {
        reward: {
            name: _resampled(values[scored], verdicts[scored], counts) for name, values in columns.items()
        }
        for reward, columns in gaps.items()
    }
    first, *others = draws
    return BenchmarkReport(
        pairs=int(scored.sum()),
        ties=int((verdicts[scored] == 0).sum()),
        left_out=int((~scored).sum()),
        notes=notes,
        agreement={
            reward: {
                name: Agreement(_estimate(t), float(limit[0]), _estimate(d))
                for name, (t, limit, d) in columns.items()
            }
            for reward, columns in draws.items()
        },
        comparisons=[
            _compare(other, draws[other]["total"], first, draws[first]["total"]) for other in others
        ],
    )


def check_verdicts(verdicts) -> list[str]:
    """What the reader of a result should know about the verdicts; ValueError where nothing can be ranked."""
    if not len(verdicts):
        raise ValueError("benchmark: no pair was scored by every reward")
    if not verdicts.any():
        raise ValueError(f"benchmark: all {len(verdicts)} pairs are ties, so no order can be right or wrong")
    notes = []
    if verdicts.all():
        notes.append("no pair is a tie: tau and diff are the same accuracy unless scores are equal")
    note = one_side(verdicts)
    return notes + [note] if note else notes


def _resampled(gaps, verdicts, counts):
    """(tau [R], threshold [R], diff [R]) of resamples, in chunks."""
    size = max(1, _CHUNK // len(gaps))
    parts = [counts[row : row + size] for row in range(0, len(counts), size)]
    taus, thresholds = zip(*(_tau(gaps, verdicts, part) for part in parts), strict=True)
    diffs = [_diff(gaps, verdicts, part) for part in parts]
    return np.concatenate(taus), np.concatenate(thresholds), np.concatenate(diffs)


def _estimate(draws) -> Estimate:
    """The first draw is the value, the others its bootstrap distribution."""
    low, high = np.nanpercentile(draws[1:], [2.5, 97.5])
    return Estimate(float(draws[0]), float(low), float(high))


def _compare(reward, draws, other, other_draws) -> Comparison:
    return Comparison(
        reward, other, _estimate(draws[0] - other_draws[0]), _estimate(draws[2] - other_draws[2])
    )
