"""Non-negative logistic regression on answer differences: weights from preferences.

VisionReward (arXiv 2412.21059) learns a checklist's weights from pairs of items: with `x` the coded answers,
the item that people preferred minus the other is one row of `differences`, and

    P(preferred over other) = sigmoid(w . (x_preferred - x_other))        no bias, w >= 0

Every question is phrased so that "yes" is good; a negative weight is a confound and not allowed. Two solvers:
`algorithm1` is the paper's (fit, set negative weights to zero, refit what is left, until nothing changes);
`exact` solves the constrained problem itself. They differ where a question that was negative at first would
be positive once its rivals are gone: Algorithm 1 never takes it back.

Shapes: M pairs, Q questions, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import nnls
from scipy.special import expit

SOLVERS = ("exact", "algorithm1")
_RESAMPLE_SETTLED = (
    1e-5  # largest move of a resample's weight in its last step; the next would be far smaller
)
_STEPS = 60  # resampling steps before a resample is fitted alone
_CONVERGED = 1e-15  # decrease of the mean objective that a step still promises when a fit ends
_NEWTON_STEPS = 200  # far more than any fit takes
_CHUNK = 4_000_000  # logits held at once while resampling


@dataclass(frozen=True)
class Penalty:
    """What is added to the summed log loss of M pairs.

    ridge: variance-1/ridge normal prior on every weight, `ridge / 2 * |w|^2`; keeps separable data finite.
    l1: `l1 * M * sum(w)`, per pair so that one value means the same on any number of pairs.
    """

    ridge: float = 1.0
    l1: float = 0.0

    def __post_init__(self):
        if self.ridge < 0 or self.l1 < 0:
            raise ValueError(f"penalty: ridge {self.ridge} and l1 {self.l1} must be 0 or more")


@dataclass(frozen=True)
class Fit:
    """weights [Q], the mean objective (log loss + penalty, nats a pair), the fits it took (exact: 1)."""

    weights: np.ndarray
    objective: float
    rounds: int


def objective(weights, differences, penalty: Penalty) -> tuple[float, np.ndarray]:
    """Mean penalised log loss at `weights` [Q] and its gradient [Q]; `differences` is [M, Q]."""
    count = len(differences)
    logits = differences @ weights
    loss = np.logaddexp(0.0, -logits).mean()
    gradient = -(differences.T @ expit(-logits)) / count
    loss += penalty.l1 * weights.sum() + 0.5 * penalty.ridge / count * weights @ weights
    return loss, gradient + penalty.l1 + penalty.ridge / count * weights


def check_differences(differences) -> np.ndarray:
    """`differences` as a float64 [M, Q] array; one-line ValueError where it cannot be fitted."""
    differences = np.asarray(differences, dtype=np.float64)
    if differences.ndim != 2 or 0 in differences.shape:
        raise ValueError(
            f"differences: shape {differences.shape}, needed [pairs, questions] with at least one of each"
        )
    if not np.isfinite(differences).all():
        rows = int((~np.isfinite(differences).all(axis=1)).sum())
        raise ValueError(f"differences: {rows} pairs have a missing answer; leave them out first")
    if not differences.any():
        raise ValueError(
            "differences: every pair has the same answers on both sides, so no weight can be learned"
        )
    return differences


def fit(differences, solver: str = "exact", penalty: Penalty | None = None, start=None) -> Fit:
    """Non-negative weights [Q] for `differences` [M, Q], each row preferred minus other."""
    differences = check_differences(differences)
    penalty = penalty or Penalty()
    match solver:
        case "exact":
            return _minimise(differences, penalty, nonnegative=True, start=start)
        case "algorithm1":
            return _algorithm1(differences, penalty)
    raise ValueError(f"solver: {solver!r}, allowed: {', '.join(SOLVERS)}")


def fit_unconstrained(differences, penalty: Penalty | None = None) -> Fit:
    """Plain logistic regression without bias: what the weights would be if negative ones were allowed."""
    return _minimise(check_differences(differences), penalty or Penalty(), nonnegative=False)


def _minimise(differences, penalty, nonnegative: bool, start=None) -> Fit:
    """Newton's method; with the constraint, each step goes towards the non-negative minimum of its model."""
    weights = np.zeros(differences.shape[1]) if start is None else np.asarray(start, dtype=np.float64)
    value, gradient = objective(weights, differences, penalty)
    for _ in range(_NEWTON_STEPS):
        lower = np.linalg.cholesky(_curvature(weights, differences, penalty) / len(differences))
        target = (
            _step_exact(lower, weights, gradient) if nonnegative else _step_free(lower, weights, gradient)
        )
        direction, share = target - weights, 1.0
        if -gradient @ direction <= _CONVERGED:
            break
        while share > 1e-9:  # halved until the objective falls as its slope promises
            moved = weights + share * direction
            new_value, new_gradient = objective(moved, differences, penalty)
            if new_value <= value + 1e-4 * share * (gradient @ direction):
                break
            share /= 2
        else:
            break  # no lower value within rounding
        weights, value, gradient = moved, new_value, new_gradient
    return Fit(weights, float(value), 1)


def _algorithm1(differences, penalty) -> Fit:
    """VisionReward, Algorithm 1: w <- w * (w > 0) after each fit, until the weights stay."""
    weights = np.zeros(differences.shape[1])
    kept = np.ones(differences.shape[1], dtype=bool)
    rounds, dropped = 0, True
    while dropped and kept.any():  # a fit that drops nothing would be the same again
        rounds += 1
        start = weights[kept]
        weights = np.zeros_like(weights)
        weights[kept] = _minimise(differences[:, kept], penalty, False, start).weights
        weights = weights * (weights > 0)
        dropped = (kept & (weights == 0)).any()
        kept = weights > 0
    return Fit(weights, float(objective(weights, differences, penalty)[0]), rounds)


def _curvature(weights, differences, penalty: Penalty) -> np.ndarray:
    """Second derivative [Q, Q] of the summed objective at `weights`, a trace above singular."""
    p = expit(differences @ weights)
    scaled = differences * np.sqrt(p * (1 - p))[:, None]
    curvature = scaled.T @ scaled + penalty.ridge * np.eye(len(weights))
    curvature[np.diag_indices_from(curvature)] += 1e-9 * np.trace(curvature) / len(curvature) + 1e-12
    return curvature


def refit(differences, counts, start, solver: str = "exact", penalty: Penalty | None = None) -> np.ndarray:
    """Weights [R, Q] of R resamples at once; `counts` [R, M] says how often each pair is in each.

    All resamples share one curvature, that of the whole data at `start` [Q], so a step needs only their
    gradients (two matrix products for all of them); the steps end at each resample's own optimum. The few
    resamples for which that curvature is too far off (little data) go through `fit`.
    """
    penalty = penalty or Penalty()
    counts = np.asarray(counts)
    size = max(1, _CHUNK // len(differences))
    curvature = _curvature(start, differences, penalty)
    parts = [
        _refit_chunk(differences, counts[row : row + size], start, curvature, solver, penalty)
        for row in range(0, len(counts), size)
    ]
    return np.concatenate(parts)


def _refit_chunk(differences, counts, start, curvature, solver, penalty) -> np.ndarray:
    counts = counts.astype(np.float64)
    share = counts.sum(axis=1) / len(differences)
    weights = np.tile(start, (len(counts), 1))
    kept = np.ones(weights.shape, dtype=bool)
    todo = np.arange(len(counts))
    lower = np.linalg.cholesky(curvature)
    for _ in range(_STEPS):
        rows, scale = weights[todo], share[todo, None]
        residual = expit(-(rows @ differences.T))
        residual *= counts[todo]
        gradient = (penalty.ridge * rows - residual @ differences) / scale + penalty.l1 * len(differences)
        if solver == "exact":
            moved = np.array([_step_exact(lower, w, g) for w, g in zip(rows, gradient, strict=True)])
        else:
            moved = np.array(
                [_step_kept(curvature, w, g, k) for w, g, k in zip(rows, gradient, kept[todo], strict=True)]
            )
        settled = np.abs(moved - rows).max(axis=1) <= _RESAMPLE_SETTLED
        negative = (moved < 0) & settled[:, None]
        kept[todo] &= ~negative
        weights[todo] = np.where(negative, 0.0, moved)
        todo = todo[~settled | negative.any(axis=1)]
        if not len(todo):
            return weights
    for row in todo:
        rows = np.repeat(differences, counts[row].astype(int), axis=0)
        weights[row] = fit(rows, solver, penalty).weights
    return weights


def _step_exact(lower, weights, gradient) -> np.ndarray:
    """argmin over v >= 0 of the quadratic model at `weights`: least squares |L' v - b|, L L' = curvature."""
    target = lower.T @ weights - solve_triangular(lower, gradient, lower=True, check_finite=False)
    return nnls(lower.T, target)[0]


def _step_free(lower, weights, gradient) -> np.ndarray:
    """Minimum of the quadratic model at `weights`, L L' = curvature."""
    return weights - cho_solve((lower, True), gradient, check_finite=False)


def _step_kept(curvature, weights, gradient, kept) -> np.ndarray:
    moved = np.zeros_like(weights)
    block = cho_factor(curvature[np.ix_(kept, kept)], check_finite=False)
    moved[kept] = weights[kept] - cho_solve(block, gradient[kept], check_finite=False)
    return moved


def bootstrap(differences, start, groups, rng, resamples=400, solver="exact", penalty=None) -> np.ndarray:
    """Weights [resamples, Q]: whole groups [M] (pairs of one prompt, say) are drawn with replacement."""
    return refit(differences, draw_counts(groups, rng, resamples), start, solver, penalty)


def draw_counts(groups, rng, resamples: int) -> np.ndarray:
    """Counts [resamples, M] of a bootstrap over groups: pairs of one group are drawn together."""
    _, index = np.unique(groups, return_inverse=True)
    size = int(index.max()) + 1
    drawn = [np.bincount(rng.integers(size, size=size), minlength=size) for _ in range(resamples)]
    return np.array(drawn, dtype=np.int16)[:, index]


def accuracy(weights, differences) -> np.ndarray:
    """Per pair [M]: 1 where the preferred item scores higher, 0 where lower, 1/2 where both are equal."""
    margin = differences @ weights
    return 0.5 * (np.sign(margin) + 1)
