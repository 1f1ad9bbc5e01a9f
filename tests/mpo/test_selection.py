import pytest
import torch

from mpo.config import ObjectiveConfig, ObjectivesConfig
from mpo.selection import best_step, validation_rows

NAN = float("nan")


def levels(values):
    """Two dimensions, values [P, N, 2]."""
    scores = torch.tensor(values, dtype=torch.float64)
    return {"dimension": (("quality", "motion"), scores)}


STEPS = {
    0: levels([[[1.0, 1.0]], [[1.0, 1.0]]]),
    10: levels([[[2.0, 1.0]], [[2.0, 1.5]]]),
    20: levels([[[4.0, 0.0]], [[4.0, 0.5]]]),
}


def test_rows_are_means_and_the_best_is_that_of_the_highest_total():
    rows = validation_rows(STEPS, ObjectivesConfig(), 0.0)
    assert rows[1] == {
        "step": 10,
        "samples": 2,
        "validation/total": 3.25,
        "validation/quality": 2.0,
        "validation/motion": 1.25,
        "fell": [],
    }
    assert best_step(rows) == 20  # 4.25 > 3.25


def test_a_held_objective_that_fell_rules_a_step_out():
    config = ObjectivesConfig(dims={"motion": ObjectiveConfig(role="hold", tolerance=0.2)})
    rows = validation_rows(STEPS, config, 0.0)
    assert [row["fell"] for row in rows] == [[], [], ["motion"]]  # 1.0, 1.25, .25
    assert rows[2]["validation/total"] == 4.0 and best_step(rows) == 10
    loose = ObjectivesConfig(dims={"motion": ObjectiveConfig(role="hold", tolerance=0.8)})
    assert best_step(validation_rows(STEPS, loose, 0.0)) == 20
    assert best_step([row for row in rows if row["step"] != 10]) == 20  # none is left: the best of all


def test_the_base_is_no_choice_and_the_earliest_of_equals_is_taken():
    same = {step: levels([[[value, 0.0]]]) for step, value in {0: 9.0, 5: 2.0, 10: 2.0}.items()}
    assert best_step(validation_rows(same, ObjectivesConfig(), 0.0)) == 5


def test_only_samples_scored_at_every_step_count():
    holed = STEPS | {20: levels([[[NAN, 1.0]], [[8.0, 0.5]]])}
    rows = validation_rows(holed, ObjectivesConfig(), 0.0)
    assert [row["samples"] for row in rows] == [1, 1, 1]
    assert [row["validation/total"] for row in rows] == [2.0, 3.5, 8.5]
    with pytest.raises(ValueError, match="no validation sample"):
        validation_rows(holed | {30: levels([[[1.0, 1.0]], [[NAN, 1.0]]])}, ObjectivesConfig(), 0.0)
