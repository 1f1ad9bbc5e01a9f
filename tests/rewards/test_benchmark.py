import itertools

import numpy as np
import pytest
from scipy.stats import kendalltau

from rewards.benchmark import benchmark, check_verdicts, diff, tau


def brute_force(gaps, verdicts):
    """tau as it is defined: the best accuracy over all thresholds that make a difference."""
    best = (-1.0, 0.0)
    for threshold in sorted({0.0, *np.abs(gaps)}):
        predicted = np.where(np.abs(gaps) <= threshold, 0, np.sign(gaps))
        best = max(best, ((predicted == verdicts).mean(), -threshold))
    return best[0], -best[1]


def test_tau_by_hand():
    # |gap| ascending: .1 tied, .2 right, .3 tied, .5 wrong, .9 right
    gaps, verdicts = [0.1, -0.2, 0.3, 0.5, 0.9], [0, -1, 0, -1, 1]
    # threshold 0: 2 right (.2, .9). .1: +1 tie = 3. .2: loses a right one = 2. .3: +1 tie = 3. Least: .1
    assert tau(gaps, verdicts) == (3 / 5, 0.1)
    assert diff(gaps, verdicts) == pytest.approx(2 / 3)


def test_equal_scores_are_predicted_ties_and_half_right_without_ties():
    assert tau([0.0, 0.0, 1.0], [0, 1, 1]) == (2 / 3, 0.0)
    assert diff([0.0, 0.0, 1.0], [0, 1, 1]) == pytest.approx((0.5 + 1) / 2)


def test_equal_gaps_share_a_threshold():
    # both gaps are 1: a threshold cannot tie one and not the other, so one of the two is wrong either way
    assert tau([1.0, 1.0], [0, 1])[0] == 0.5


@pytest.mark.parametrize("seed", range(8))
def test_tau_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    verdicts = rng.integers(-1, 2, size=40)
    gaps = np.round(verdicts + rng.normal(size=40) * 1.5, seed % 3)  # rounded: many equal gaps, and zeros
    assert tau(gaps, verdicts) == pytest.approx(brute_force(gaps, verdicts))


def test_without_ties_accuracy_is_kendalls_tau_of_the_ranking():
    rng = np.random.default_rng(0)
    people, scores = rng.permutation(12), rng.permutation(12) * 1.0
    pairs = list(itertools.combinations(range(12), 2))
    verdicts = np.array([np.sign(people[i] - people[j]) for i, j in pairs])
    gaps = np.array([scores[i] - scores[j] for i, j in pairs])
    expected = kendalltau(people, scores).statistic
    assert 2 * diff(gaps, verdicts) - 1 == pytest.approx(expected)
    assert tau(gaps, verdicts)[0] >= diff(gaps, verdicts)


def sides(gaps):
    return {"total": (np.asarray(gaps, float), np.zeros(len(gaps)))}


def test_report_compares_rewards_on_the_same_pairs():
    rng = np.random.default_rng(1)
    verdicts = rng.choice([-1, 1, 1, 0], size=400)
    good, noise = verdicts + rng.normal(size=400) * 0.5, rng.normal(size=400)
    good[:10], noise[5:20] = np.nan, np.nan
    report = benchmark({"noise": sides(noise), "good": sides(good)}, verdicts, resamples=200)
    assert (report.pairs, report.left_out) == (380, 20)
    assert report.ties == (verdicts[20:] == 0).sum()
    assert report.agreement["good"]["total"].tau.value == tau(good[20:], verdicts[20:])[0]
    low = report.agreement["noise"]["total"].diff
    assert low.low < 0.5 < low.high
    gain = report.comparisons[0]
    assert (gain.reward, gain.other) == ("good", "noise")
    assert gain.diff.low > 0.2 and gain.diff.low < gain.diff.value < gain.diff.high


def test_interval_width_is_that_of_a_proportion():
    verdicts = np.ones(1000, dtype=int)
    verdicts[::2] = -1
    gaps = verdicts * np.where(np.arange(1000) < 700, 1.0, -1.0)  # 70 % right
    interval = benchmark({"r": sides(gaps)}, verdicts, resamples=1000).agreement["r"]["total"].diff
    error = np.sqrt(0.7 * 0.3 / 1000)
    assert interval.value == pytest.approx(0.7)
    assert (interval.high - interval.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)


def test_pairs_of_one_prompt_are_resampled_together():
    verdicts = np.ones(100, dtype=int)
    verdicts[:50] = -1
    gaps = np.where(np.arange(100) % 10 < 5, 1.0, -1.0) * verdicts
    alone = benchmark({"r": sides(gaps)}, verdicts, groups=np.arange(100))
    grouped = benchmark({"r": sides(gaps)}, verdicts, groups=np.arange(100) % 10)
    width = [
        r.agreement["r"]["total"].diff.high - r.agreement["r"]["total"].diff.low for r in (alone, grouped)
    ]
    assert width[1] > 2 * width[0]  # 10 prompts, all right or all wrong, instead of 100 independent pairs


def test_dimensions_are_measured_too():
    verdicts = np.array([1, -1, 1, -1])
    columns = sides([1, -1, 1, 1]) | {"clarity": (np.array([1.0, 0, 1, 0]), np.array([0.0, 1, 0, 1]))}
    agreement = benchmark({"r": columns}, verdicts, resamples=20).agreement["r"]
    assert agreement["total"].diff.value == 0.75 and agreement["clarity"].diff.value == 1.0


def test_a_reward_that_tells_nothing_apart_is_noted():
    report = benchmark({"r": sides([0, 0, 0])}, [1, -1, 0], resamples=20)
    assert report.notes == [
        "r scores both items of every pair the same: does its judge answer everything alike? "
        "Check its template, precision and weights"
    ]


def test_only_ties_is_an_error_and_one_sided_verdicts_a_note():
    with pytest.raises(ValueError, match="all 3 pairs are ties"):
        check_verdicts(np.zeros(3))
    assert "first item is preferred in every pair" in " ".join(check_verdicts(np.array([1, 1, 0])))
    assert "no pair is a tie" in " ".join(check_verdicts(np.array([1, -1])))
    assert check_verdicts(np.array([1, -1, 0])) == []
