import pytest
import torch

from mpo.config import ObjectiveConfig
from mpo.objectives import (
    at_granularity,
    by_prompt,
    general_slack,
    objectives,
    only_total,
    parts,
    settings_by_name,
)

NAN = float("nan")
HOLD = ObjectiveConfig(role="hold", tolerance=0.2)


def test_roles_decide_what_counts_in_the_total_and_what_is_compared():
    scores = torch.tensor([[[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]])
    dims = {"b": HOLD, "c": ObjectiveConfig(role="ignore"), "a": ObjectiveConfig(weight=3.0, margin=0.5)}
    found = objectives(scores, ("a", "b", "c"), dims, tolerance=0.1)
    assert found.names == ("a", "b")
    assert found.total.tolist() == [[3.0, 6.0]]  # 3 a: b is only held, c is left out
    assert found.least.tolist() == [0.5, -0.2]  # a must rise by its margin, b may fall by its tolerance
    assert found.weights.tolist() == [3.0, 0.0]


def test_the_general_tolerance_is_for_objectives_that_set_none():
    dims = {"b": ObjectiveConfig(tolerance=0.0)}
    found = objectives(torch.zeros(1, 2, 2), ("a", "b"), dims, tolerance=0.3)
    assert found.least.tolist() == [-0.3, 0.0]


def test_a_missing_score_makes_the_candidate_invalid_unless_it_is_ignored():
    scores = torch.tensor([[[1.0, 2.0], [3.0, NAN], [NAN, 4.0], [5.0, 6.0]]])
    found = objectives(scores, ("a", "b"), {})
    assert found.valid.tolist() == [[True, False, False, True]]
    assert found.values[0, 1].isnan().all() and found.values[0, 2].isnan().all()
    ignoring = objectives(scores, ("a", "b"), {"b": ObjectiveConfig(role="ignore")})
    assert ignoring.valid.tolist() == [[True, True, False, True]]


def test_a_held_objective_that_is_missing_makes_the_candidate_invalid():
    found = objectives(torch.tensor([[[1.0, NAN], [2.0, 0.0]]]), ("a", "b"), {"b": HOLD})
    assert found.valid.tolist() == [[False, True]]


def test_the_total_granularity_keeps_roles_and_held_objectives():
    scores = torch.tensor([[[1.0, 2.0, 5.0], [3.0, 4.0, 6.0]]])
    dims = {"b": ObjectiveConfig(weight=0.5), "c": HOLD}
    found = only_total(objectives(scores, ("a", "b", "c"), dims, tolerance=0.1))
    assert found.names == ("total", "c")
    assert found.values.tolist() == [[[2.0, 5.0], [5.0, 6.0]]]  # 1 + 2/2 and 3 + 4/2, c as it was
    assert found.total.tolist() == [[2.0, 5.0]]
    assert found.least.tolist() == [0.0, -0.2]
    assert found.weights.tolist() == [1.0, 0.0]


def test_granularities_read_their_own_level_and_agree_in_the_total():
    parts = torch.rand(3, 4, 3, dtype=torch.float64)
    whole = torch.stack([parts[..., 0] + parts[..., 1], parts[..., 2]], -1)
    levels = {"dimension": (("x", "y"), whole), "subdimension": (("x.a", "x.b", "y.c"), parts)}
    found = {
        name: at_granularity(levels, name, {"x": HOLD}) for name in ("total", "dimension", "subdimension")
    }
    assert found["total"].names == ("total", "x")
    assert found["dimension"].names == ("x", "y")
    assert found["subdimension"].weights.tolist() == [0.0, 0.0, 1.0]  # x holds for all below it
    for one in found.values():
        assert torch.equal(one.total, parts[..., 2])


def test_the_nearest_fitting_entry_sets_a_name():
    dims = {
        "*": ObjectiveConfig(weight=1),
        "dynamic": ObjectiveConfig(weight=2),
        "dynamic.*motion": ObjectiveConfig(weight=3),
        "dynamic.camera motion": ObjectiveConfig(weight=4),
        "clarity": ObjectiveConfig(weight=5),
        "video.clarity": ObjectiveConfig(weight=6),
    }
    expected = {
        "dynamic": 2,
        "dynamic.speed": 2,
        "dynamic.object motion": 3,
        "dynamic.camera motion": 4,
        "quality.clarity": 5,
        "video.clarity": 6,
        "rest": 1,
    }
    assert [setting.weight for setting in settings_by_name(list(expected), dims)] == list(expected.values())


def test_a_name_that_fits_nothing_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"objectives\.dims\.qualty: .*the nearest is quality"):
        objectives(torch.zeros(1, 2, 2), ("alignment", "quality"), {"qualty": HOLD})


def test_nothing_to_improve_is_refused():
    with pytest.raises(ValueError, match="nothing to improve; of a, b"):
        objectives(torch.zeros(1, 2, 2), ("a", "b"), {"*": HOLD})


def test_rows_become_a_table_with_nan_where_there_is_none():
    table = by_prompt(torch.tensor([1, 0, 1]), torch.tensor([2, 0, 0]), torch.tensor([[1.0], [2.0], [3.0]]))
    expected = torch.tensor([[2.0, NAN, NAN], [3.0, NAN, 1.0]], dtype=torch.float64)[..., None]
    assert torch.equal(table.nan_to_num(-1), expected.nan_to_num(-1))


NAMES = {
    "dimension": ("quality", "dynamic"),
    "subdimension": ("quality.clarity", "quality.colour", "dynamic.camera", "dynamic.object"),
    "question": (
        "quality.clarity.sharp",
        "quality.clarity.very",
        "quality.colour.vivid",
        "dynamic.camera.pan",
        "dynamic.object.walks",
    ),
}


def three_levels(questions):
    """Levels of NAMES from the questions' scores [P, N, 5]: each level the sum of its parts."""

    def sums(names):
        below = [[q.startswith(f"{name}.") for q in NAMES["question"]] for name in names]
        return questions @ torch.tensor(below, dtype=torch.float64).T

    return {
        level: (NAMES[level], sums(NAMES[level]) if level != "question" else questions) for level in NAMES
    }


def test_what_is_finer_than_the_granularity_is_taken_out_of_what_it_is_part_of():
    questions = torch.tensor([[[1.0, 2.0, 4.0, 8.0, 16.0], [0.0, 0.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    found = at_granularity(three_levels(questions), "dimension", {"clarity": HOLD})
    assert found.names == ("quality", "quality.clarity", "dynamic")
    assert found.values[0, 0].tolist() == [4.0, 3.0, 24.0]  # the rest of quality is colour
    assert found.total[0, 0] == 28.0 and found.least.tolist() == [0.0, -0.2, 0.0]
    total = at_granularity(three_levels(questions), "total", {"clarity": HOLD})
    assert total.names == ("total", "quality.clarity") and total.values[0, 0].tolist() == [28.0, 3.0]


def test_a_whole_whose_parts_are_all_taken_out_is_no_objective():
    assert list(parts(NAMES, "dimension", {"dynamic.*": HOLD})) == [
        "quality",
        "dynamic.camera",
        "dynamic.object",
    ]
    assert list(parts(NAMES, "dimension", {"dynamic": HOLD})) == ["quality", "dynamic"]
    assert list(parts(NAMES, "subdimension", {"*.very": HOLD}))[:2] == [
        "quality.clarity",
        "quality.clarity.very",
    ]


def test_every_entry_has_a_meaning_at_every_granularity():
    """`clarity` says the same of the questions below it as of itself."""
    questions = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dims = {"clarity": ObjectiveConfig(role="ignore"), "dynamic.*": HOLD}
    found = {name: at_granularity(three_levels(questions), name, dims) for name in ("total", *NAMES)}
    for one in found.values():
        assert torch.allclose(one.total, questions[..., 2])
        assert not any("clarity" in name for name in one.names)
    assert found["question"].names == ("quality.colour.vivid", "dynamic.camera.pan", "dynamic.object.walks")


def test_a_name_that_no_level_has_is_refused_with_the_nearest_of_all():
    with pytest.raises(ValueError, match=r"objectives\.dims\.clarty: .*the nearest is quality\.clarity"):
        parts(NAMES, "dimension", {"clarty": HOLD})
    with pytest.raises(ValueError, match="dims.dynamics.*: there is no such objective"):
        parts(NAMES, "question", {"dynamics.*": HOLD})


def test_only_objectives_without_slack_of_their_own_follow_the_general_one():
    dims = {"a": HOLD, "b": ObjectiveConfig(margin=0.1), "c": ObjectiveConfig(weight=2.0)}
    assert general_slack(("total", "a", "b", "c"), dims) == [True, False, False, True]
