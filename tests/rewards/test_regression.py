import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from rewards import regression
from rewards.regression import Penalty

FREE = Penalty(ridge=0.0)


def preferences(weights, pairs, seed, questions_alike=0.6):
    """Differences [pairs, Q], preferred minus other, of ±1 answers with preferences drawn from `weights`."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(2, pairs, 1)) * questions_alike
    answers = np.where(rng.normal(size=(2, pairs, len(weights))) + common > 0, 1, -1)
    differences = answers[0] - answers[1]
    first = rng.random(pairs) < expit(differences @ np.asarray(weights))
    return np.where(first[:, None], differences, -differences).astype(float)


def test_one_question_has_a_closed_form():
    # 30 pairs prefer the yes (difference +2), 10 the no: sigmoid(2 w) = 30/40, so w = log(3) / 2
    differences = np.repeat([[2.0], [-2.0]], [30, 10], axis=0)
    for solver in regression.SOLVERS:
        assert regression.fit(differences, solver, FREE).weights == pytest.approx([np.log(3) / 2], abs=1e-6)


def test_gradient_is_the_derivative_of_the_objective():
    differences = preferences([0.5, 0.2, 0.0], 50, seed=0)
    weights, penalty, step = np.array([0.3, 0.1, 0.4]), Penalty(ridge=2.0, l1=0.05), 1e-6
    gradient = regression.objective(weights, differences, penalty)[1]
    for k, unit in enumerate(np.eye(3) * step):
        above = regression.objective(weights + unit, differences, penalty)[0]
        below = regression.objective(weights - unit, differences, penalty)[0]
        assert gradient[k] == pytest.approx((above - below) / (2 * step), abs=1e-8)


def test_exact_solution_meets_the_optimality_conditions():
    differences = preferences([0.8, 0.3, 0.0, -0.4, 0.1], 800, seed=1)
    result = regression.fit(differences)
    gradient = regression.objective(result.weights, differences, Penalty())[1]
    used = result.weights > 0
    assert used.tolist()[:2] == [True, True] and not used[3]
    assert np.abs(gradient[used]).max() < 1e-6  # free weights: no slope left
    assert gradient[~used].min() > -1e-6  # zero weights: only uphill


@pytest.mark.parametrize("penalty", [Penalty(), Penalty(ridge=0.01, l1=0.02)])
def test_both_fits_are_those_of_a_general_optimiser(penalty):
    differences = preferences([1.5, 0.3, 0.0, -0.4, 0.1, 0.0], 300, seed=6)
    for bound, found in (
        (0.0, regression.fit(differences, penalty=penalty)),
        (None, regression.fit_unconstrained(differences, penalty)),
    ):
        expected = minimize(
            regression.objective,
            np.full(6, 0.1),
            args=(differences, penalty),
            jac=True,
            method="L-BFGS-B",
            bounds=[(bound, None)] * 6,
            options={"ftol": 0.0, "gtol": 1e-10},
        )
        assert found.weights == pytest.approx(expected.x, abs=1e-6)
        assert found.objective == pytest.approx(expected.fun, abs=1e-12)


def test_steps_that_overshoot_are_shortened():
    # found by search: a full Newton step from zero raises the objective here
    differences = np.round(np.random.default_rng(571).standard_cauchy(size=(8, 2)) * 2, 1) + 0.1
    penalty = Penalty(ridge=0.01)
    weights = regression.fit_unconstrained(differences, penalty).weights
    assert np.abs(regression.objective(weights, differences, penalty)[1]).max() < 1e-6


def test_exact_is_never_worse_and_algorithm1_is_its_own_fixed_point():
    differences = preferences([0.6, 0.0, -0.5, 0.2, 0.0, -0.1], 300, seed=3)
    exact, paper = (regression.fit(differences, solver) for solver in regression.SOLVERS)
    assert exact.objective <= paper.objective + 1e-9
    kept = paper.weights > 0
    again = regression.fit_unconstrained(differences[:, kept]).weights
    assert again == pytest.approx(paper.weights[kept], abs=1e-5) and (again > 0).all()


def test_algorithm1_does_not_take_a_question_back():
    # found by search: question 1 is negative beside question 2, which is negative itself and goes too
    rng = np.random.default_rng(10)
    differences = rng.integers(-2, 3, size=(40, 4)).astype(float)
    exact, paper = (regression.fit(differences, solver) for solver in regression.SOLVERS)
    assert ((exact.weights > 1e-4) & (paper.weights == 0)).any()
    assert exact.objective < paper.objective - 1e-6


def test_a_duplicated_pair_weighs_as_two():
    differences = preferences([0.5, 0.2, 0.1], 200, seed=4)
    counts = np.arange(200) % 3
    start = regression.fit(differences).weights
    for solver in regression.SOLVERS:
        direct = regression.fit(np.repeat(differences, counts, axis=0), solver).weights
        assert regression.refit(differences, counts[None], start, solver)[0] == pytest.approx(
            direct, abs=1e-5
        )


def test_few_pairs_still_reach_each_resamples_optimum():
    differences = preferences([1.0, 0.5, 0.0, 0.0, 0.3, 0.0], 25, seed=5)
    start = regression.fit(differences).weights
    counts = regression.draw_counts(np.arange(25), np.random.default_rng(0), 20)
    together = regression.refit(differences, counts, start)
    for weights, count in zip(together, counts, strict=True):
        alone = regression.fit(np.repeat(differences, count, axis=0)).weights
        assert weights == pytest.approx(alone, abs=1e-4)


def test_groups_are_drawn_whole():
    counts = regression.draw_counts(np.array(["a", "a", "b", "c", "b"]), np.random.default_rng(0), 50)
    assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, 2] == counts[:, 4]).all()
    assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all() and counts[:, [0, 2, 3]].std() > 0


def planted(seed, pairs=1000):
    """Preferences from six known weights; confounds: a noisy copy of question 0, a noisy opposite of 1."""
    rng = np.random.default_rng(seed)
    true = np.array([1.0, 0.6, 0.4, 0.3, 0.2, 0.15, 0.0, 0.0])
    answers = np.where(rng.normal(size=(2, pairs, 8)) + rng.normal(size=(2, pairs, 1)) * 0.5 > 0, 1, -1)
    flips = np.where(rng.random((2, pairs, 2)) < 0.2, -1, 1)
    answers[..., 6], answers[..., 7] = answers[..., 0] * flips[..., 0], -answers[..., 1] * flips[..., 1]
    differences = answers[0] - answers[1]
    first = rng.random(pairs) < expit(differences @ true)
    return true, np.where(first[:, None], differences, -differences).astype(float)


def test_known_weights_lie_in_their_intervals_and_confounds_are_not_needed():
    repetitions, covered = 40, np.zeros(8)
    for seed in range(repetitions):
        true, differences = planted(seed)
        weights = regression.fit(differences).weights
        rng = np.random.default_rng(seed)
        draws = regression.bootstrap(differences, weights, np.arange(len(differences)), rng, resamples=120)
        low, high = np.percentile(draws, [2.5, 97.5], axis=0)
        covered += (low <= true) & (true <= high)
    # 240 intervals of the true weights, nominally 95 %: standard error 1.4 %
    assert 0.905 <= covered[:6].mean() / repetitions <= 0.99
    assert covered[6:].min() / repetitions >= 0.9  # the confounds' intervals reach down to zero


def test_a_question_that_people_vote_against_gets_weight_zero():
    differences = preferences([0.8, 0.4, -0.6], 600, seed=2)
    assert regression.fit_unconstrained(differences).weights[2] < -0.3
    for solver in regression.SOLVERS:
        assert regression.fit(differences, solver).weights[2] == 0


def test_separable_pairs_keep_finite_weights():
    differences = np.array([[2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    for solver in regression.SOLVERS:
        weights = regression.fit(differences, solver).weights
        assert np.isfinite(weights).all() and (weights > 0).all() and weights.max() < 2
        assert (
            regression.fit(differences, solver, FREE).objective < 1e-6
        )  # without a penalty they grow, and end


@pytest.mark.parametrize(
    ("differences", "message"),
    [
        (np.zeros((3, 2)), "same answers on both sides"),
        (np.zeros((0, 2)), "at least one"),
        (np.array([[np.nan, 1.0]]), "missing answer"),
    ],
)
def test_unusable_differences_are_named(differences, message):
    with pytest.raises(ValueError, match=message):
        regression.fit(differences)


def test_unknown_solver_is_named():
    with pytest.raises(ValueError, match="allowed: exact, algorithm1"):
        regression.fit(np.ones((2, 1)), "newton")
