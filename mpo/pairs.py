"""Which dominating pairs to keep, and what a choice of granularity and margin would yield. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from mpo.config import PairsConfig
from mpo.dominance import Pairs, tally
from mpo.draws import draws
from mpo.objectives import ROUNDING, Objectives
from mpo.rules import preferred_pairs


def choose_pairs(objectives: Objectives, config: PairsConfig, seed: int) -> Pairs:
    """The pairs to train on: those that `config.rule` prefers, by dominance if not told otherwise, selected.

    Raises ValueError where there is none, naming the objectives that stop most and what to relax.
    """
    preferred = preferred_pairs(objectives, config.rule, config.margin, seed)
    pairs = select(preferred, objectives.total, config, seed)
    if not len(pairs):
        raise ValueError(explain_no_pairs(objectives, config.rule, config.margin))
    return pairs


def select(pairs: Pairs, total: Tensor, config: PairsConfig, seed: int) -> Pairs:
    """Some of `pairs`, by `config.select`, at most `config.cap` a prompt; `total` [P, N].

    all: every one; beyond the cap a sample, drawn for each prompt by its own stream of `seed`. top: the k of
    greatest gap. best_worst: the best winner of a prompt against the worst of those that it dominates.
    """
    match config.select:
        case "all" if config.cap is None:
            return pairs
        case "all":
            return first_per_prompt(pairs, config.cap, draws(seed, pairs.prompt, pairs.winner, pairs.loser))
        case "top":
            k = config.k if config.cap is None else min(config.k, config.cap)
            return first_per_prompt(pairs, k, -_rounded(pairs.gap))
        case "best_worst":
            winner = -_rounded(total[pairs.prompt, pairs.winner])
            return first_per_prompt(pairs, 1, winner, _rounded(total[pairs.prompt, pairs.loser]))
    raise ValueError(f"pairs.select = {config.select!r}: must be one of all, top, best_worst")


def first_per_prompt(pairs: Pairs, k: int, *keys: Tensor) -> Pairs:
    """The first k pairs of each prompt by ascending `keys` [M]; ties stay in order of winner and loser."""
    order = torch.arange(len(pairs))
    for key in (*reversed(keys), pairs.prompt):
        order = order[key[order].argsort(stable=True)]
    prompt = pairs.prompt[order]
    rank = torch.arange(len(pairs)) - torch.searchsorted(prompt, prompt)
    return pairs[order[rank < k].sort().values]


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


def explain_no_pairs(objectives: Objectives, rule: str, margin: float) -> str:
    """One line: why the rule prefers no candidate, which objectives stop most pairs, and what to relax."""
    counts = tally(objectives, [margin])
    P, N = objectives.total.shape
    if counts.comparable == 0:
        scored = int(objectives.valid.sum())
        return f"no pair at all: only {scored} of {P * N} candidates have scores, never two of one prompt"
    if rule != "dominance":
        return (
            f"no pair at all: pairs.rule = {rule} finds none at pairs.margin = {margin:g}: lower the margin"
        )
    wide = int(counts.wide[0])
    asked = f"differ by pairs.margin = {margin:g} in the total"
    if wide == 0:
        return (
            f"no pair at all: no two candidates of a prompt {asked}; "
            f"the widest differ by {counts.widest:.4g}: lower pairs.margin to less than that"
        )
    shares = counts.blocks[0] / wide
    worst = shares.argsort(descending=True, stable=True)[:3].tolist()
    named = ", ".join(f"{objectives.names[k]} ({shares[k]:.0%})" for k in worst if shares[k] > 0)
    first = f"objectives.dims.{objectives.names[worst[0]]}"
    return (
        f"no pair at all: {wide} {asked} but none dominates; stopped most often by {named}; "
        f"raise pairs.tolerance or {first}.tolerance, set {first}.role=ignore, "
        f"or choose a coarser objectives.granularity"
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


def _rounded(scores: Tensor) -> Tensor:
    """Scores on a grid, so that ties by construction stay ties whatever the order of summation."""
    return scores.round(decimals=9)
