"""Base against tuned model on held-out prompts: paired differences, intervals, wins and joint rates. Pure.

Shapes as in `mpo.objectives`, with S samples a prompt in place of N candidates. Sample s of a prompt has the
same seed in both models, so the two are compared sample by sample. The bootstrap draws prompts, since the
samples of one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mpo.objectives import ROUNDING

Levels = Mapping[str, tuple[Sequence[str], Tensor]]  # level -> names, scores [P, S, K]

_KEYS = {"dimension": "dimensions", "subdimension": "subdimensions", "question": "questions"}
_CHUNK = 1 << 22  # draws at a time


@dataclass(frozen=True)
class Contrast:
    """What the tuned model has changed in one score."""

    base: float  # mean over prompts
    tuned: float
    delta: float
    ci95: tuple[float, float]  # of delta: percentile bootstrap, paired by prompt
    win: float  # share of samples in which the tuned model is better; adds up to 1 with tie and loss
    tie: float
    loss: float

    @property
    def fell(self) -> bool:
        """The whole interval lies below zero."""
        return self.ci95[1] < 0


def compare(
    base: Levels,
    tuned: Levels,
    resamples: int,
    seed: int,
    shares: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> dict[str, Any]:
    """One reward's part of evaluation.json, ready for JSON.

    total: the fields of `Contrast`. dimensions, subdimensions, questions: the same by name. Each of `shares`
    (name -> base and tuned [P, S], such as the share of right attributes): the same under its name. joint:
    `joint_rates`. regressions: the dimensions that fell significantly. prompts, samples: how many were
    compared; missing: samples left out because one of the two has no score. Raises ValueError where fewer
    than two prompts can be compared.
    """

    def contrasts(names: Sequence[str], before: Tensor, after: Tensor) -> dict[str, Contrast]:
        return dict(zip(names, contrast(before, after, resamples, seed), strict=True))

    by_level = {level: contrasts(*base[level], tuned[level][1]) for level in ("total", *_KEYS)}
    for name, (before, after) in (shares or {}).items():
        by_level["total"] |= contrasts([name], before[..., None], after[..., None])
    scored = ~(base["total"][1] + tuned["total"][1]).isnan().any(-1)  # [P, S]
    return {
        "prompts": int(scored.any(1).sum()),
        "samples": int(scored.sum()),
        "missing": int((~scored).sum()),
        **{name: asdict(found) for name, found in by_level["total"].items()},
        **{
            key: {name: asdict(found) for name, found in by_level[level].items()}
            for level, key in _KEYS.items()
        },
        "joint": joint_rates(base["dimension"][1], tuned["dimension"][1]),
        "regressions": [name for name, found in by_level["dimension"].items() if found.fell],
    }


def contrast(base: Tensor, tuned: Tensor, resamples: int, seed: int) -> list[Contrast]:
    """The contrast of each of K scores, from [P, S, K] of both models; NaN in either leaves the sample out.

    Raises ValueError where fewer than two prompts are left, which have no interval.
    """
    difference = _difference(base, tuned)
    scored = ~difference.isnan().any(-1)  # [P, S]
    kept = scored.any(1)
    if kept.sum() < 2:
        raise ValueError(
            f"evaluation: {int(kept.sum())} of {len(kept)} held-out prompts have scores of both models; "
            "an interval needs at least 2"
        )

    def prompt_means(scores: Tensor) -> Tensor:
        scores = scores.double().masked_fill(~scored[..., None], 0.0)
        return scores[kept].sum(1) / scored[kept].sum(1, keepdim=True)

    deltas = prompt_means(difference)
    means = [values.mean(0).tolist() for values in (prompt_means(base), prompt_means(tuned), deltas)]
    interval = bootstrap_interval(deltas, resamples, seed).T.tolist()
    sign = difference[scored].sign()
    outcomes = [(sign == side).double().mean(0).tolist() for side in (1, 0, -1)]
    return [
        Contrast(before, after, delta, (low, high), win, tie, loss)
        for before, after, delta, (low, high), win, tie, loss in zip(*means, interval, *outcomes, strict=True)
    ]


def bootstrap_interval(values: Tensor, resamples: int, seed: int) -> Tensor:
    """[2, K] the 2.5 and 97.5 % points of the mean of values [P, K] over prompts drawn with replacement.

    The percentile bootstrap (Efron 1979). The K columns share their draws.
    """
    P = len(values)
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, _CHUNK // P)
    means = []
    for start in range(0, resamples, chunk):
        drawn = torch.randint(P, (min(chunk, resamples - start), P), generator=generator)
        times = values.new_zeros(drawn.shape).scatter_add_(1, drawn, values.new_ones(drawn.shape))
        means.append(times @ values / P)
    return torch.cat(means).quantile(values.new_tensor([0.025, 0.975]), dim=0)


def joint_rates(base: Tensor, tuned: Tensor) -> dict[str, float]:
    """Shares of prompts in which one model dominates, from [P, S, K] of both: none of the K worse and at
    least one better. A prompt of several samples counts by the share of them; NaN leaves a sample out.

    domination: the tuned model dominates the base; collapse: it is dominated.
    """
    difference = _difference(base, tuned)
    scored = ~difference.isnan().any(-1)  # [P, S]
    better, worse = (difference > 0).any(-1), (difference < 0).any(-1)
    kept = scored.any(1)

    def prompt_share(dominated: Tensor) -> float:
        return float(((dominated & scored).sum(1)[kept].double() / scored.sum(1)[kept]).mean())

    return {"domination": prompt_share(better & ~worse), "collapse": prompt_share(worse & ~better)}


def _difference(base: Tensor, tuned: Tensor) -> Tensor:
    """tuned - base in float64, with what is only rounding set to 0."""
    difference = tuned.double() - base.double()
    return difference.masked_fill(difference.abs() <= ROUNDING, 0.0)
