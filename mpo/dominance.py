"""Which candidate dominates which (VisionReward, arXiv 2412.21059, section 4). Pure.

Candidate i dominates j of the same prompt when every objective of i is at least that of j, up to a tolerance,
and the total of i is greater by a margin. All prompts are compared at once, a chunk at a time so that memory
stays flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mpo.objectives import ROUNDING, Objectives

_CHUNK = 1 << 20  # comparisons at a time, 8 MB of differences


@dataclass(frozen=True)
class Pairs:
    """M preference pairs. Indices are those of `Objectives`; rows are in order of prompt, winner, loser."""

    prompt: Tensor  # [M] int64
    winner: Tensor  # [M] int64, the candidate
    loser: Tensor  # [M] int64
    gap: Tensor  # [M] float64: total of the winner - total of the loser, in what the rule takes for the total

    def __len__(self) -> int:
        return len(self.prompt)

    def __getitem__(self, rows: Tensor) -> Pairs:
        """The pairs at `rows` (indices or a mask)."""
        return Pairs(self.prompt[rows], self.winner[rows], self.loser[rows], self.gap[rows])


@dataclass(frozen=True)
class Tally:
    """How many ordered pairs (i, j) pass and what stops the others, for each of G margins."""

    comparable: int  # unordered pairs of valid candidates of one prompt
    wide: Tensor  # [G] pairs whose total differs by the margin
    dominating: Tensor  # [G] those of them that dominate
    prompts_without: Tensor  # [G] prompts with no dominating pair
    blocks: Tensor  # [G, K] wide pairs that objective k stops
    blocks_alone: Tensor  # [G, K] those that only objective k stops
    widest: float  # the greatest difference in the total, 0 where nothing is comparable


def dominating_pairs(objectives: Objectives, margin: float) -> Pairs:
    """Every pair in which the winner dominates and its total is greater by at least `margin`.

    Raises ValueError for a margin that is not positive.
    """
    return pairs_where(objectives, partial(dominates, margin=margin))


def pairs_where(objectives: Objectives, preferred: Callable[[Objectives], Tensor]) -> Pairs:
    """Every pair (i, j) of one prompt at which `preferred`, [p, N, N] bool for p prompts, is True."""
    prompts, winners, losers, gaps = [], [], [], []
    for start, chunk in _chunks(objectives):
        prompt, winner, loser = preferred(chunk).nonzero(as_tuple=True)
        prompts.append(prompt + start)
        winners.append(winner)
        losers.append(loser)
        gaps.append(chunk.total[prompt, winner] - chunk.total[prompt, loser])
    return Pairs(*map(torch.cat, (prompts, winners, losers, gaps)))


def dominates(objectives: Objectives, margin: float) -> Tensor:
    """[P, N, N] True where candidate i dominates j and its total is greater by at least `margin`."""
    mask = differences(objectives.total) >= _threshold(margin)  # False where either is NaN
    for k, least in enumerate(objectives.least.tolist()):
        mask &= differences(objectives.values[..., k]) >= least - ROUNDING
    return mask


def differences(scores: Tensor) -> Tensor:
    """[P, N] -> [P, N, N], candidate i minus candidate j."""
    scores = scores.contiguous()
    return scores[:, :, None] - scores[:, None, :]


def tally(objectives: Objectives, margins: Sequence[float]) -> Tally:
    """Counts over all pairs for each of `margins`, in one pass over the scores.

    Raises ValueError for a margin that is not positive.
    """
    thresholds = [_threshold(margin) for margin in margins]
    size, K = len(thresholds), len(objectives.names)
    wide_pairs, dominating, without = (torch.zeros(size, dtype=torch.int64) for _ in range(3))
    blocks, alone = torch.zeros(size, K, dtype=torch.int64), torch.zeros(size, K, dtype=torch.int64)
    widest = 0.0
    for _, chunk in _chunks(objectives):
        gap = differences(chunk.total).nan_to_num(0.0)
        least = objectives.least.tolist()
        falls = torch.stack([differences(chunk.values[..., k]) < least[k] - ROUNDING for k in range(K)])
        count = falls.sum(0)
        widest = max(widest, float(gap.max()))
        for g, threshold in enumerate(thresholds):
            wide = gap >= threshold
            passed = wide & (count == 0)
            wide_pairs[g] += wide.sum()
            dominating[g] += passed.sum()
            without[g] += (~passed.flatten(1).any(1)).sum()
            blocks[g] += (falls & wide).flatten(1).sum(1)
            alone[g] += (falls & (wide & (count == 1))).flatten(1).sum(1)
    n = objectives.valid.sum(1)
    return Tally(int((n * (n - 1) // 2).sum()), wide_pairs, dominating, without, blocks, alone, widest)


def _threshold(margin: float) -> float:
    """What a difference of totals must reach: the margin up to rounding, and more than rounding itself."""
    if not margin > 0:
        raise ValueError(f"pairs.margin = {margin}: must be greater than 0")
    return max(margin - ROUNDING, ROUNDING)


def _chunks(objectives: Objectives) -> Iterator[tuple[int, Objectives]]:
    """(first prompt, the objectives of a run of prompts) over all prompts."""
    P, N = objectives.total.shape
    size = max(1, _CHUNK // (N * N))
    for start in range(0, P, size):
        yield start, objectives[start : start + size]
