"""What a fit of checklist weights is worth: intervals, accuracy, path, learning curve, zeroed questions.

Everything here works on answer differences [M pairs, Q questions] (see `regression`) and on `groups` [M]:
pairs with one group id, those of one prompt say, are never split between training and test and are resampled
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rewards import regression
from rewards.regression import Penalty

CURVE_SIZES = (200, 500, 1000, 2000, 4000, 8000)  # pairs; VisionReward's own learning curve


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PathPoint:
    """Weights [Q] at one L1 strength and their cross-validated accuracy."""

    l1: float
    weights: list[float]
    questions: int  # non-zero weights
    accuracy: Estimate


@dataclass(frozen=True)
class CurvePoint:
    """Held-out accuracy after fitting `pairs` pairs; `spread`: standard deviation over draws of them."""

    pairs: int
    accuracy: Estimate
    spread: float


@dataclass(frozen=True)
class SolverResult:
    """One solver on all the data: objective (nats a pair), non-zero weights, cross-validated accuracy."""

    objective: float
    rounds: int
    questions: int
    accuracy: Estimate


@dataclass(frozen=True)
class WeightReport:
    """Learned weights and what supports them. `zero_share`: share of resamples in which a weight is zero."""

    questions: list[str]
    pairs: int
    groups: int
    solver: str
    penalty: Penalty
    weights: list[Estimate]
    zero_share: list[float]
    zeroed: dict[str, str]  # question -> why its weight is zero
    same_answers: dict[str, str]  # question -> an earlier one with identical answers in every pair
    solvers: dict[str, SolverResult]
    solver_gap: float  # largest difference of a weight between the two solvers
    path: list[PathPoint]
    curve: list[CurvePoint]

    def to_dict(self) -> dict:
        return asdict(self)


def learn_weights(
    differences,
    questions: Sequence[str],
    groups=None,
    solver: str = "exact",
    penalty: Penalty | None = None,
    resamples: int = 400,
    folds: int = 5,
    seed: int = 0,
) -> WeightReport:
    """Weights for `questions` from `differences` [M, Q] (preferred minus other), and what supports them."""
    differences = regression.check_differences(differences)
    if differences.shape[1] != len(questions):
        raise ValueError(f"differences: {differences.shape[1]} columns for {len(questions)} questions")
    penalty = penalty or Penalty()
    groups = np.arange(len(differences)) if groups is None else np.unique(groups, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    fits = {name: regression.fit(differences, name, penalty) for name in regression.SOLVERS}
    chosen = fits[solver].weights
    if not chosen.any():
        raise ValueError(
            "weights: every weight is zero: no question agrees with the preferences, alone or together"
        )
    draws = regression.bootstrap(differences, chosen, groups, rng, resamples, solver, penalty)
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    test = assign_folds(groups, folds, rng)
    solvers = {}
    for name, result in fits.items():
        correct = cross_validate(differences, test, name, penalty, result.weights)
        estimate = mean_interval(correct, groups)
        used = int((result.weights > 0).sum())
        solvers[name] = SolverResult(result.objective, result.rounds, used, estimate)
    return WeightReport(
        questions=list(questions),
        pairs=len(differences),
        groups=int(groups.max()) + 1,
        solver=solver,
        penalty=penalty,
        weights=[Estimate(*map(float, row)) for row in zip(chosen, low, high, strict=True)],
        zero_share=(draws == 0).mean(axis=0).tolist(),
        zeroed=why_zeroed(differences, chosen, questions, penalty),
        same_answers=same_answers(differences, questions),
        solvers=solvers,
        solver_gap=float(np.abs(fits["exact"].weights - fits["algorithm1"].weights).max()),
        path=regularisation_path(differences, groups, test, penalty),
        curve=learning_curve(differences, groups, rng, solver, penalty),
    )


def mean_interval(values, groups) -> Estimate:
    """Mean of `values` [M]; normal interval whose standard error treats each group as one draw."""
    mean = float(np.mean(values))
    sums = np.bincount(groups, weights=values - mean)
    count = len(np.unique(groups))
    error = np.sqrt((sums**2).sum() * count / max(count - 1, 1)) / len(values)
    return Estimate(mean, float(mean - 1.96 * error), float(mean + 1.96 * error))


def assign_folds(groups, folds: int, rng) -> np.ndarray:
    """Test fold [M] of each pair; a group lies in one fold. At most as many folds as groups."""
    count = int(groups.max()) + 1
    if count < 2:
        raise ValueError("cross-validation: all pairs belong to one prompt; at least two are needed")
    return rng.permutation(np.arange(count) % min(folds, count))[groups]


def cross_validate(differences, test, solver: str, penalty: Penalty, start) -> np.ndarray:
    """Out-of-fold accuracy [M] of each pair (1, 0, or 1/2 for equal scores)."""
    weights = regression.refit(differences, _training_counts(test), start, solver, penalty)
    return _out_of_fold(weights, differences, test)


def _training_counts(test) -> np.ndarray:
    """[folds, M]: which pairs each fold trains on."""
    return test != np.arange(test.max() + 1)[:, None]


def _out_of_fold(weights, differences, test) -> np.ndarray:
    correct = np.empty(len(test))
    for fold, fold_weights in enumerate(weights):
        correct[test == fold] = regression.accuracy(fold_weights, differences[test == fold])
    return correct


def regularisation_path(differences, groups, test, penalty: Penalty, points: int = 20) -> list[PathPoint]:
    """From the least L1 that zeroes every weight down to a thousandth of it, accuracy by cross-validation."""
    strongest = differences.mean(axis=0).max() / 2  # minus the gradient of the mean loss at w = 0
    if strongest <= 0:
        return []
    counts = np.concatenate([np.ones((1, len(test)), dtype=bool), _training_counts(test)])
    start, path = np.zeros(differences.shape[1]), []
    for l1 in np.geomspace(strongest, strongest / 1000, points).tolist():
        weights = regression.refit(differences, counts, start, "exact", Penalty(penalty.ridge, l1))
        start = weights[0]
        accuracy = mean_interval(_out_of_fold(weights[1:], differences, test), groups)
        path.append(PathPoint(l1, start.tolist(), int((start > 0).sum()), accuracy))
    return path


def learning_curve(
    differences,
    groups,
    rng,
    solver: str,
    penalty: Penalty,
    sizes: Sequence[int] = CURVE_SIZES,
    draws: int = 5,
) -> list[CurvePoint]:
    """Accuracy on a held-out fifth of the groups after fits to random subsets of the others, and to all."""
    test = assign_folds(groups, 5, rng) == 0
    pool, held_out = differences[~test], differences[test]
    curve = []
    for size in [*(size for size in sizes if size < len(pool)), len(pool)]:
        subsets = [rng.permutation(len(pool))[:size] for _ in range(draws if size < len(pool) else 1)]
        correct = np.array([_fitted_accuracy(pool[rows], held_out, solver, penalty) for rows in subsets])
        estimate = mean_interval(correct.mean(axis=0), groups[test])
        curve.append(CurvePoint(size, estimate, float(correct.mean(axis=1).std())))
    return curve


def _fitted_accuracy(differences, held_out, solver, penalty) -> np.ndarray:
    return regression.accuracy(regression.fit(differences, solver, penalty).weights, held_out)


def why_zeroed(differences, weights, questions: Sequence[str], penalty: Penalty) -> dict[str, str]:
    """For each question of weight zero, the reason in one line.

    Alone: the sign of a question's mean difference is the sign of its weight in a fit of its own. Together:
    its weight in the fit that allows negative weights.
    """
    together = regression.fit_unconstrained(differences, Penalty(penalty.ridge)).weights
    reasons = {}
    for column in np.flatnonzero(weights == 0):
        values = differences[:, column]
        if not values.any():
            reason = "the two items of a pair never differ in it"
        elif values.sum() <= 0:
            better, worse = int((values > 0).sum()), int((values < 0).sum())
            reason = f"people preferred the item with the worse answer ({worse} pairs against {better})"
        elif together[column] < 0:
            rival = _rival(differences, weights, column)
            reason = f"agrees with people alone, but {together[column]:+.3f} beside the others"
            reason += f" (closest: {questions[rival]})"
        else:
            reason = "adds nothing once the questions with negative weights are out"
            reason = "too weak for the L1 penalty" if penalty.l1 else reason
        reasons[questions[column]] = reason
    return reasons


def _rival(differences, weights, column) -> int:
    """The weighted question whose differences resemble those of `column` most (cosine)."""
    norms = np.linalg.norm(differences, axis=0)
    cosine = differences.T @ differences[:, column] / np.where(norms > 0, norms, np.inf)
    return int(np.argmax(np.where(weights > 0, cosine, -np.inf)))


def same_answers(differences, questions: Sequence[str]) -> dict[str, str]:
    """Questions that no pair tells from an earlier one: only the sum of their weights is determined."""
    first: dict[bytes, str] = {}
    twins = {}
    for name, column in zip(questions, differences.T, strict=True):
        if column.any():
            earlier = first.setdefault(np.ascontiguousarray(column).tobytes(), name)
            if earlier != name:
                twins[name] = earlier
    return twins
