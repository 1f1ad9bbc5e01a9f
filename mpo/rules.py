"""Which candidate is preferred to which: dominance, and the rules that it is compared with. Pure.

`margin` is the least difference of the totals, as for dominance. Objectives that are held may not fall under
any rule but `random`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mpo.dominance import Pairs, differences, dominates, dominating_pairs, pairs_where
from mpo.draws import draws
from mpo.objectives import ROUNDING, Objectives, only_total, weighted_sum


def preferred_pairs(objectives: Objectives, rule: str, margin: float, seed: int) -> Pairs:
    """The pairs by the rule that `pairs.rule` names. Raises ValueError for a margin that is not positive."""
    match rule:
        case "dominance":
            return dominating_pairs(objectives, margin)
        case "total":
            return by_total(objectives, margin)
        case "majority":
            return by_majority(objectives, margin)
        case "normalised":
            return by_normalised_sum(objectives, margin)
        case "pareto":
            return by_pareto_frontier(objectives, margin)
        case "random":
            return at_random(objectives, seed)
    raise ValueError(
        f"pairs.rule = {rule!r}: must be one of dominance, total, majority, normalised, pareto, random"
    )


def by_total(objectives: Objectives, margin: float) -> Pairs:
    """Pairs whose totals differ by the margin: plain Diffusion-DPO on a summed reward."""
    return dominating_pairs(only_total(objectives), margin)


def by_majority(objectives: Objectives, margin: float) -> Pairs:
    """Pairs whose winner is better in more objectives than it is worse in, and in total by the margin."""

    def preferred(chunk: Objectives) -> Tensor:
        votes = torch.zeros(1)
        for k in chunk.weights.nonzero().flatten().tolist():
            difference = differences(chunk.values[..., k])
            votes = votes + torch.where(difference.abs() > ROUNDING, difference.sign(), 0.0)
        return dominates(only_total(chunk), margin) & (votes > 0)

    return pairs_where(objectives, preferred)


def by_normalised_sum(objectives: Objectives, margin: float) -> Pairs:
    """Pairs whose weighted sums of standardised objectives differ by the margin, in standard deviations.

    Each objective is standardised over the candidates of its prompt, so that none counts for more because it
    varies more (GDPO, arXiv 2601.05242). One that does not vary there counts 0.
    """
    centred = objectives.values - objectives.values.nanmean(1, keepdim=True)
    deviation = centred.square().nanmean(1, keepdim=True).sqrt()
    standard = torch.where(deviation > ROUNDING, centred / deviation, 0.0 * centred)
    return by_total(replace(objectives, total=weighted_sum(standard, objectives.weights)), margin)


def by_pareto_frontier(objectives: Objectives, margin: float) -> Pairs:
    """Pairs of a candidate on its prompt's Pareto frontier with one behind it whose total is less by the
    margin.

    A candidate is behind the frontier when some other is nowhere worse and in total better; the winner need
    not be that other one (in the spirit of CaPO, arXiv 2502.02588).
    """

    def preferred(chunk: Objectives) -> Tensor:
        strict = replace(chunk, least=torch.zeros_like(chunk.least))  # no tolerance, no margins of their own
        behind = dominates(strict, ROUNDING).any(1)  # [p, N]
        return dominates(only_total(chunk), margin) & ~behind[:, :, None] & behind[:, None, :]

    return pairs_where(objectives, preferred)


def at_random(objectives: Objectives, seed: int) -> Pairs:
    """Every two scored candidates of a prompt, the winner by the toss of a coin: what preferences are worth.

    The coin depends on the seed, the prompt and the two candidates alone. Gaps may be negative.
    """
    N = objectives.total.shape[1]
    one, other = torch.triu_indices(N, N, offset=1)
    prompt, place = (objectives.valid[:, one] & objectives.valid[:, other]).nonzero(as_tuple=True)
    one, other = one[place], other[place]
    heads = draws(seed, prompt, one, other) < 0
    winner, loser = torch.where(heads, one, other), torch.where(heads, other, one)
    gap = objectives.total[prompt, winner] - objectives.total[prompt, loser]
    order = ((prompt * N + winner) * N + loser).argsort()
    return Pairs(prompt, winner, loser, gap)[order]
