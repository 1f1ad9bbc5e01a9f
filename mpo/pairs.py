"""Which pairs to keep of those that a rule prefers. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mpo.config import PairsConfig
from mpo.dominance import Pairs, tally
from mpo.draws import draws
from mpo.objectives import Objectives
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


def given_pairs(total: Tensor, prompts: Iterable[int]) -> Pairs:
    """Of each of `prompts`, candidate 0 as the winner and 1 as the loser, as people said; `total` [P, 2].

    The gap is that of the totals, 0 where either has none; it may be negative.
    """
    prompt = torch.tensor(list(prompts), dtype=torch.long)
    winner = torch.zeros_like(prompt)
    return Pairs(prompt, winner, winner + 1, (total[prompt, 0] - total[prompt, 1]).nan_to_num(0.0))


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


def _rounded(scores: Tensor) -> Tensor:
    """Scores on a grid, so that ties by construction stay ties whatever the order of summation."""
    return scores.round(decimals=9)
