"""Intervals over seeds, paired tests over seeds and prompts, and Holm's correction. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval and the p-value of its being 0."""

    mean: float
    low: float | None  # None where there is too little to tell
    high: float | None
    p: float | None


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one value a seed with Student's interval; None for the rest where there is one seed."""
    values = torch.tensor(list(values), dtype=torch.float64)
    n = len(values)
    variance = float(values.var() / n) if n > 1 else math.nan
    return _estimate(float(values.mean()), variance, n - 1)


def paired(differences: Tensor) -> Estimate:
    """Mean difference between two arms from differences [S, P] of S seeds (runs) and the same P prompts.

    Seeds and prompts are both samples of what one wants to speak of, so both count as random: the variance of
    the mean is (MS_seeds + MS_prompts - MS_rest) / SP with Satterthwaite's degrees of freedom, the quasi-F of
    Clark (1973, "The language-as-fixed-effect fallacy"). A component that comes out negative is taken as 0,
    and the degrees of freedom never fall below those of seeds or prompts, whichever are fewer: subtracting
    can push them just under, with two seeds under 1.
    With no effect of seeds this is the paired t-test over prompts, with no effect of prompts the one over
    seeds. One seed: over prompts alone. Prompts that lack a value in any seed are left out.
    """
    d = differences.double()
    d = d[:, ~d.isnan().any(0)]
    S, P = d.shape
    if P == 0:
        raise ValueError("significance: no prompt has values of both arms in every seed")
    if S == 1:
        return over_seeds(d[0].tolist())  # prompts in the place of seeds
    if P == 1:
        return over_seeds(d[:, 0].tolist())
    by_seed, by_prompt, mean = d.mean(1), d.mean(0), d.mean()
    rest = d - by_seed[:, None] - by_prompt + mean
    squares = [float(P * by_seed.var()), float(S * by_prompt.var())]
    degrees = [S - 1, P - 1, (S - 1) * (P - 1)]
    error = float(rest.square().sum()) / degrees[2]
    small, large = sorted(range(2), key=lambda k: squares[k])
    if squares[small] <= error:  # that component is not there: the other one alone
        return _estimate(float(mean), squares[large] / (S * P), degrees[large])
    total = squares[0] + squares[1] - error
    parts = (*squares, error)
    freedom = total**2 / sum(square**2 / k for square, k in zip(parts, degrees, strict=True))
    return _estimate(float(mean), total / (S * P), max(freedom, min(degrees)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p-values, in order; what is None is no test and stays None."""
    known = sorted((p, k) for k, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    greatest = 0.0
    for rank, (p, k) in enumerate(known):
        greatest = max(greatest, min(1.0, (len(known) - rank) * p))
        adjusted[k] = greatest
    return adjusted


def _estimate(mean: float, variance: float, freedom: float) -> Estimate:
    if freedom < 1 or math.isnan(variance):
        return Estimate(mean, None, None, None)
    error = math.sqrt(variance)
    reach = float(stats.t.ppf(0.975, freedom)) * error
    if error <= 1e-12 * max(1.0, abs(mean)):  # all the same but for rounding
        return Estimate(mean, mean, mean, 1.0 if abs(mean) <= 1e-12 else 0.0)
    return Estimate(mean, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / error, freedom)))
