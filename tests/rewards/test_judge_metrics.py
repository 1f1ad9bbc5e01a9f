import json

import numpy as np
import pytest

from rewards.judge_metrics import calibration_error, measure_answers

QUESTIONS = ("sharp", "bright", "unasked")


def test_accuracies_by_hand():
    # sharp: truth yes yes yes no; said yes no yes yes -> right 1 0 1 0
    # bright: truth no no; said no no
    asked = [0, 0, 0, 0, 1, 1]
    p_yes = [0.9, 0.2, 0.8, 0.7, 0.1, 0.4]
    truth = [1, 1, 1, 0, 0, 0]
    report = measure_answers(QUESTIONS, asked, p_yes, truth, missing=2)
    sharp, bright = report.questions["sharp"], report.questions["bright"]
    assert set(report.questions) == {"sharp", "bright"}
    assert (sharp.answers, sharp.accuracy, sharp.majority, sharp.said_yes) == (4, 0.5, 0.75, 0.75)
    assert sharp.balanced == pytest.approx((2 / 3 + 0) / 2)
    assert (bright.accuracy, bright.balanced, bright.majority) == (1.0, None, 1.0)
    assert report.balanced == sharp.balanced  # bright has one side only
    assert report.overall.accuracy == pytest.approx(4 / 6) and report.missing == 2
    # overall: yes 2 of 3, no 2 of 3
    assert report.overall.balanced == pytest.approx(2 / 3)
    json.dumps(report.to_dict(), allow_nan=False)


def test_always_yes_is_as_good_as_the_majority_and_no_better_than_chance_when_balanced():
    truth = np.arange(10) < 8
    report = measure_answers(QUESTIONS, np.zeros(10, int), np.full(10, 0.9), truth)
    sharp = report.questions["sharp"]
    assert (sharp.accuracy, sharp.majority, sharp.balanced) == (0.8, 0.8, 0.5)


def test_calibration_by_hand():
    # bin .9-1: two answers at .95, one right: |.95 - .5|. bin .6-.7: two at .65, both right: |.65 - 1|
    error = calibration_error([0.95, 0.95, 0.65, 0.65], [1, 0, 1, 1])
    assert error == pytest.approx((2 * 0.45 + 2 * 0.35) / 4)
    assert calibration_error([1.0, 1.0], [1, 1]) == 0


def test_a_calibrated_judge_has_no_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 40_000)
    assert calibration_error(confidence, rng.random(40_000) < confidence) < 0.01


def test_confidence_is_that_of_the_answer_given():
    # P(yes) = .1 says no with confidence .9: right, so the error is .1 and not .9
    report = measure_answers(QUESTIONS, [0], [0.1], [0])
    assert report.overall.calibration == pytest.approx(0.1)


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="no answer to measure"):
        measure_answers(QUESTIONS, [], [], [])
