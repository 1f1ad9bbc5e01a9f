"""What a choice of granularity, margin, tolerance and number of candidates would yield. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from mpo.dominance import dominates, pairs_where, tally
from mpo.draws import draws
from mpo.objectives import ROUNDING, Objectives
from mpo.rules import preferred_pairs

MARGINS = (0.25, 0.5, 1.0, 2.0, 4.0)  # what a yield report looks at if not told otherwise, times pairs.margin


@dataclass(frozen=True)
class Yield:
    """What dominance at one granularity, margin and number of candidates gives, before any selection."""

    granularity: str
    margin: float
    candidates: int  # places a prompt
    pairs: int  # dominating pairs
    share: float  # of all pairs of two scored candidates
    pairs_per_prompt: float
    prompts_without: int
    blocks: dict[str, float]  # objective -> share of the pairs wide enough in total that it stops
    blocks_alone: dict[str, float]  # ... that nothing else stops


@dataclass(frozen=True)
class Agreement:
    """Correlation of one granularity's objectives within prompts; NaN where an objective is constant."""

    granularity: str
    names: tuple[str, ...]
    correlation: Tensor  # [K, K]


@dataclass(frozen=True)
class YieldReport:
    prompts: int
    candidates: int  # places a prompt
    missing: int  # of P x N, without a score
    rows: tuple[Yield, ...]
    agreement: tuple[Agreement, ...]

    def to_dict(self) -> dict:
        """Ready for JSON: undefined correlations are None."""
        return {
            "prompts": self.prompts,
            "candidates": self.candidates,
            "missing": self.missing,
            "rows": [asdict(row) for row in self.rows],
            "agreement": [
                {
                    "granularity": entry.granularity,
                    "names": list(entry.names),
                    "correlation": [
                        [None if math.isnan(r) else r for r in row] for row in entry.correlation.tolist()
                    ],
                }
                for entry in self.agreement
            ],
        }


def yield_report(
    by_granularity: Mapping[str, Objectives],
    margins: Sequence[float],
    counts: Sequence[int] = (),
    seed: int = 0,
) -> YieldReport:
    """What each granularity yields at each margin, and how far its objectives agree.

    Rows come for all candidates, then for as many as each of `counts`, drawn by `seed` from the scored.
    """
    valid = next(iter(by_granularity.values())).valid
    smaller = sorted((count for count in counts if 2 <= count < valid.shape[1]), reverse=True)
    return YieldReport(
        prompts=valid.shape[0],
        candidates=valid.shape[1],
        missing=int((~valid).sum()),
        rows=tuple(
            row
            for name, level in by_granularity.items()
            for sample in (level, *(subsample(level, count, seed) for count in smaller))
            for row in _yields(name, sample, margins)
        ),
        agreement=tuple(
            Agreement(name, level.names, agreement(level.values)) for name, level in by_granularity.items()
        ),
    )


def subsample(objectives: Objectives, count: int, seed: int) -> Objectives:
    """`count` candidates of each prompt, drawn from those that have scores, the same at every granularity."""
    P, N = objectives.total.shape
    places = torch.arange(P)[:, None].expand(P, N), torch.arange(N).expand(P, N)
    keys = draws(seed, *places).masked_fill(~objectives.valid, torch.iinfo(torch.int64).max)
    drawn = keys.argsort(1)[:, :count]
    return replace(
        objectives,
        values=objectives.values.take_along_dim(drawn[..., None], 1),
        total=objectives.total.take_along_dim(drawn, 1),
    )


def agreement(values: Tensor) -> Tensor:
    """[K, K] Pearson correlation of values [P, N, K] within prompts, each prompt's own mean taken off.

    Only differences within a prompt make pairs, so prompts that are easy on all counts must not look like
    agreement.
    """
    centred = (values - values.nanmean(1, keepdim=True)).flatten(0, 1)
    centred = centred[~centred.isnan().any(1)]
    covariance = centred.T @ centred
    variance = covariance.diagonal()
    constant = variance <= len(centred) * ROUNDING**2
    return covariance / torch.outer(variance, variance).sqrt().masked_fill(
        constant | constant[:, None], torch.nan
    )


def _yields(granularity: str, objectives: Objectives, margins: Sequence[float]) -> list[Yield]:
    counts = tally(objectives, margins)
    prompts, candidates = objectives.total.shape
    wide = counts.wide.clamp(min=1)[:, None]
    return [
        Yield(
            granularity=granularity,
            margin=margin,
            candidates=candidates,
            pairs=int(counts.dominating[g]),
            share=int(counts.dominating[g]) / max(counts.comparable, 1),
            pairs_per_prompt=int(counts.dominating[g]) / prompts,
            prompts_without=int(counts.prompts_without[g]),
            blocks=dict(zip(objectives.names, (counts.blocks / wide)[g].tolist(), strict=True)),
            blocks_alone=dict(zip(objectives.names, (counts.blocks_alone / wide)[g].tolist(), strict=True)),
        )
        for g, margin in enumerate(margins)
    ]


@dataclass(frozen=True)
class Reach:
    """What gives a wanted share of all pairs at one granularity."""

    granularity: str
    margin: float | None  # the margin that gives it at the tolerances as they are; None: none does
    share: float  # what that margin gives; where none does, what the least margin gives
    tolerance: float | None  # where no margin does: the general tolerance that does at the margin as it is
    share_tolerant: float  # what that tolerance gives; where none does, what the greatest gives


def reach(
    objectives: Objectives, granularity: str, wanted: float, margin: float, general: Sequence[bool]
) -> Reach:
    """The margin at which the share of pairs comes nearest to `wanted`, or else the tolerance.

    `general` [K] says which objectives the general tolerance is for: those without one of their own. Scores
    are often discrete, so shares go in steps; the setting lies halfway between the two steps around it.
    """
    n = objectives.valid.sum(1)
    comparable = max(int((n * (n - 1) // 2).sum()), 1)
    gaps = pairs_where(objectives, lambda chunk: dominates(chunk, ROUNDING)).gap
    step, share = _nearest_step(-gaps, wanted, comparable)
    if step is not None:
        return Reach(granularity, -step, share, None, share)
    needed = _tolerance_needed(objectives, margin, torch.tensor(list(general)))
    tolerance, tolerant = _nearest_step(needed, wanted, comparable)
    return Reach(granularity, None, share, tolerance, tolerant)


def _tolerance_needed(objectives: Objectives, margin: float, general: Tensor) -> Tensor:
    """[M] how much general tolerance each pair needs whose total differs by the margin and whose other
    objectives allow it.
    """
    fixed = replace(objectives, least=objectives.least.masked_fill(general, -math.inf))
    pairs = pairs_where(fixed, lambda chunk: dominates(chunk, margin))
    values = objectives.values[..., general]
    falls = values[pairs.prompt, pairs.loser] - values[pairs.prompt, pairs.winner]
    return falls.amax(1).clamp(min=0.0) if falls.shape[1] else falls.new_zeros(len(pairs))


def _nearest_step(thresholds: Tensor, wanted: float, comparable: int) -> tuple[float | None, float]:
    """Where to cut ascending `thresholds` [M] so that the share below is nearest to `wanted`, and that share;
    None where all together give less than `wanted`.
    """
    steps, counts = _rounded(thresholds).unique(return_counts=True)
    shares = counts.cumsum(0) / comparable
    if not len(steps) or shares[-1] < wanted - 0.5 / comparable:
        return None, float(shares[-1]) if len(steps) else 0.0
    place = int((shares - wanted).abs().argmin())
    after = steps[place + 1] if place + 1 < len(steps) else steps[place].clamp(min=0.0)
    return float((steps[place] + after) / 2), float(shares[place])


@dataclass(frozen=True)
class RuleYield:
    """What one rule gives at one granularity and margin, before any selection."""

    rule: str
    pairs: int
    share: float  # of all pairs of two scored candidates
    dominating: float  # share of its pairs that dominance prefers as well, at the same margin
    against: float  # share of its pairs whose winner is the worse one in total


def rule_yields(objectives: Objectives, rules: Sequence[str], margin: float, seed: int) -> list[RuleYield]:
    """What each of `rules` finds among the same candidates."""
    n = objectives.valid.sum(1)
    comparable = max(int((n * (n - 1) // 2).sum()), 1)
    best = dominates(objectives, margin)
    found = []
    for rule in rules:
        pairs = preferred_pairs(objectives, rule, margin, seed)
        count = max(len(pairs), 1)
        total = objectives.total[pairs.prompt, pairs.winner] - objectives.total[pairs.prompt, pairs.loser]
        also = int(best[pairs.prompt, pairs.winner, pairs.loser].sum()) / count
        against = int((total < -ROUNDING).sum()) / count
        found.append(RuleYield(rule, len(pairs), len(pairs) / comparable, also, against))
    return found


def _rounded(scores: Tensor) -> Tensor:
    """Scores on a grid, so that ties by construction stay ties whatever the order of summation."""
    return scores.round(decimals=9)
