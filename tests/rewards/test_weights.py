import json

import numpy as np
import pytest
from scipy.special import expit

from rewards import regression
from rewards.regression import Penalty
from rewards.weights import (
    assign_folds,
    cross_validate,
    learn_weights,
    learning_curve,
    mean_interval,
    regularisation_path,
    same_answers,
    why_zeroed,
)

NAMES = ["sharp", "bright", "faces", "grid", "constant"]


def differences(pairs=600, seed=0):
    """sharp, bright and faces count; people vote against grid; nothing ever differs in constant."""
    rng = np.random.default_rng(seed)
    answers = np.where(rng.normal(size=(2, pairs, 5)) > 0, 1.0, -1.0)
    answers[..., 4] = 1
    values = answers[0] - answers[1]
    first = rng.random(pairs) < expit(values @ np.array([1.0, 0.6, 0.3, -0.5, 0.0]))
    return np.where(first[:, None], values, -values)


@pytest.fixture(scope="module")
def report():
    return learn_weights(differences(), NAMES, resamples=100)


def test_report_holds_the_weights_and_their_support(report):
    fit = regression.fit(differences())
    assert [weight.value for weight in report.weights] == pytest.approx(fit.weights.tolist())
    for weight in report.weights[:3]:
        assert 0 < weight.low < weight.value < weight.high
    assert report.zero_share[:3] == [0, 0, 0] and report.zero_share[3:] == [1, 1]
    assert set(report.solvers) == {"exact", "algorithm1"} and report.solver_gap < 1e-4
    assert report.solvers["exact"].questions == 3
    json.dumps(report.to_dict())


def test_zeroed_questions_have_a_reason(report):
    assert set(report.zeroed) == {"grid", "constant"}
    assert "never differ" in report.zeroed["constant"]
    values = differences()[:, 3]
    worse, better = int((values < 0).sum()), int((values > 0).sum())
    assert (
        report.zeroed["grid"]
        == f"people preferred the item with the worse answer ({worse} pairs against {better})"
    )


def test_a_question_that_only_echoes_another_is_explained_by_it():
    rng = np.random.default_rng(1)
    answers = np.where(rng.normal(size=(2, 4000, 3)) > 0, 1.0, -1.0)
    echoes = (
        rng.random((2, 4000)) < 0.8
    )  # question 2 repeats question 0 most of the time, and people dislike the rest
    answers[..., 2] = np.where(echoes, answers[..., 0], answers[..., 2])
    values = answers[0] - answers[1]
    first = rng.random(4000) < expit(values @ np.array([1.5, 0.6, -0.4]))
    table = np.where(first[:, None], values, -values)
    weights = regression.fit(table).weights
    assert weights[2] == 0 and table[:, 2].sum() > 0
    reason = why_zeroed(table, weights, ["sharp", "bright", "crisp"], Penalty())["crisp"]
    assert reason.startswith("agrees with people alone, but -0.") and reason.endswith("(closest: sharp)")


def test_identical_columns_are_named():
    table = differences()[:, [0, 1, 0, 4, 4]]
    assert same_answers(table, list("abcde")) == {"c": "a"}


def test_accuracy_is_out_of_fold():
    # noise: 30 random questions on 60 pairs do well on the pairs they are fitted to, and on no others
    rng = np.random.default_rng(0)
    table = rng.integers(-1, 2, size=(60, 30)) * 2.0
    fit = regression.fit(table)
    correct = cross_validate(table, assign_folds(np.arange(60), 5, rng), "exact", Penalty(), fit.weights)
    assert regression.accuracy(fit.weights, table).mean() > 0.7
    assert correct.mean() < 0.6


def test_a_prompts_pairs_share_a_fold():
    groups = np.random.default_rng(0).integers(0, 20, size=200)
    test = assign_folds(groups, 5, np.random.default_rng(1))
    assert all(len(set(test[groups == group])) == 1 for group in range(20))
    assert np.bincount([test[groups == group][0] for group in range(20)]).tolist() == [4] * 5


def test_mean_interval_by_hand():
    # 4 pairs in 2 groups with sums of (value - mean) +1 and -1: error = sqrt(2 * 2 / 1) / 4 = 1/2
    estimate = mean_interval(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1]))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.5 - 0.98, 0.5 + 0.98))


def test_path_starts_empty_and_ends_near_the_free_fit():
    table = differences()
    test = assign_folds(np.arange(600), 5, np.random.default_rng(0))
    path = regularisation_path(table, np.arange(600), test, Penalty(), points=8)
    strongest = table.mean(axis=0).max() / 2
    assert path[0].l1 == pytest.approx(strongest) and path[0].questions == 0
    assert regression.fit(table, penalty=Penalty(l1=strongest * 0.95)).weights.any()
    counts = [point.questions for point in path]
    assert counts == sorted(counts) and counts[-1] == 3
    middle = path[3]
    assert middle.weights == pytest.approx(
        regression.fit(table, penalty=Penalty(l1=middle.l1)).weights, abs=1e-4
    )
    assert path[-1].weights == pytest.approx(regression.fit(table).weights, abs=0.01)


def test_learning_curve_rises_to_the_accuracy_of_all_pairs():
    table = differences(3000)
    curve = learning_curve(
        table, np.arange(3000), np.random.default_rng(0), "exact", Penalty(), sizes=(10, 200, 9000)
    )
    assert [point.pairs for point in curve] == [10, 200, 2400]  # a fifth is held out; 9000 are not there
    assert curve[0].accuracy.value < curve[1].accuracy.value <= curve[2].accuracy.value + 0.01
    assert curve[0].spread > 0 and curve[2].spread == 0


def test_seed_fixes_the_report():
    again = [learn_weights(differences(150), NAMES, resamples=20, seed=3).to_dict() for _ in range(2)]
    assert again[0] == again[1]


def test_useless_preferences_are_named():
    with pytest.raises(ValueError, match="no question agrees with the preferences"):
        learn_weights(np.full((20, 1), -2.0), ["a"])
    with pytest.raises(ValueError, match="all pairs belong to one prompt"):
        learn_weights(differences(50), NAMES, groups=np.zeros(50, dtype=int))
    with pytest.raises(ValueError, match="5 columns for 2 questions"):
        learn_weights(differences(50), ["a", "b"])
