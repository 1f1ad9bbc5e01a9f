import json
import math

import pytest
import torch

from mpo.statistics import bootstrap_interval, compare, contrast, joint_rates

NAN = float("nan")


def table(*rows):
    """[P, 1, K] from one row of scores a prompt."""
    return torch.tensor(rows, dtype=torch.float64)[:, None]


def test_a_contrast_states_means_and_outcomes():
    base, tuned = table([1.0], [2.0], [3.0], [6.0]), table([2.0], [2.0], [5.0], [5.0])
    (found,) = contrast(base, tuned, 100, 0)
    assert (found.base, found.tuned, found.delta) == (3.0, 3.5, 0.5)
    assert (found.win, found.tie, found.loss) == (0.5, 0.25, 0.25)


def test_samples_are_averaged_within_their_prompt_first():
    # prompt 0 has one scored pair, delta 4; prompt 1 has two, deltas 0 and 2: (4 + 1) / 2, not 6 / 3
    base = torch.tensor([[1.0, NAN], [1.0, 1.0]])[..., None]
    tuned = torch.tensor([[5.0, 9.0], [1.0, 3.0]])[..., None]
    (found,) = contrast(base, tuned, 100, 0)
    assert found.delta == 2.5 and (found.base, found.tuned) == (1.0, 3.5)
    assert found.win == pytest.approx(2 / 3)  # of samples


def test_the_interval_is_paired_by_prompt():
    """Prompts differ by far more than the models do; only the paired difference matters."""
    torch.manual_seed(0)
    base = 100 * torch.randn(200, 1, 1, dtype=torch.float64)
    tuned = base + 1 + 0.1 * torch.randn(200, 1, 1, dtype=torch.float64)
    (found,) = contrast(base, tuned, 2000, 0)
    low, high = found.ci95
    assert low < found.delta < high
    assert math.isclose(high - low, 2 * 1.96 * 0.1 / math.sqrt(200), rel_tol=0.15)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    torch.manual_seed(0)
    low, high = bootstrap_interval(torch.randn(60, 1000, dtype=torch.float64), 1000, 0)
    covered = ((low < 0) & (high > 0)).double().mean()
    assert 0.92 < covered < 0.96  # 95 %, a little less for 60 prompts


def test_the_interval_of_two_values_is_known():
    # means of two draws from {0, 1}: 0, 1/2, 1 with 1/4, 1/2, 1/4, so both tails are reached
    assert bootstrap_interval(torch.tensor([[0.0], [1.0]]), 2000, 0).flatten().tolist() == [0.0, 1.0]


def test_the_interval_depends_on_the_seed_alone(monkeypatch):
    values = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = bootstrap_interval(values, 500, 1)
    assert not torch.equal(bootstrap_interval(values, 500, 2), one)
    monkeypatch.setattr("mpo.statistics._CHUNK", 1000)
    assert torch.allclose(bootstrap_interval(values, 500, 1), one, atol=1e-15)


def test_a_model_against_itself_is_all_ties():
    scores = table([1.0, 2.0], [3.0, 4.0])
    for found in contrast(scores, scores + 1e-12, 100, 0):  # the same but for rounding
        assert found.tie == 1.0 and found.delta == 0.0 and found.ci95 == (0.0, 0.0) and not found.fell
    assert joint_rates(scores, scores + 1e-12) == {"domination": 0.0, "collapse": 0.0}


def test_joint_rates_are_shares_of_prompts_by_samples_that_are_better_or_worse_throughout():
    base = torch.zeros(4, 3, 2, dtype=torch.float64)
    base[2, 1:] = NAN  # one sample is left of the third prompt, none of the fourth
    base[3] = NAN
    tuned = torch.tensor(
        [
            [[1.0, 0.0], [1.0, 2.0], [1.0, -0.1]],  # two of three dominate
            [[0.0, -1.0], [0.0, 0.0], [2.0, -1.0]],  # one of three is dominated
            [[1.0, 0.0], [1.0, 1.0], [-1.0, -1.0]],  # the only one scored dominates
            [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]],
        ],
        dtype=torch.float64,
    )
    # (2/3 + 0 + 1) / 3 prompts; over samples it would be 3/7 and 1/7
    assert joint_rates(base, tuned) == pytest.approx({"domination": 5 / 9, "collapse": 1 / 9})


def levels(dimensions):
    total = dimensions.sum(-1, keepdim=True)
    parts = (("up", "down", "same"), dimensions)
    return {"total": (("total",), total), "dimension": parts, "subdimension": parts, "question": parts}


def test_the_comparison_names_what_fell_and_is_json():
    torch.manual_seed(0)
    base = torch.randn(100, 2, 3, dtype=torch.float64)
    noise = 0.5 * torch.randn(100, 2, 3, dtype=torch.float64)
    tuned = base + noise + torch.tensor([1.0, -0.5, 0.0])
    tuned[0, 0] = NAN
    right = torch.zeros(100, 2), torch.ones(100, 2)
    found = compare(levels(base), levels(tuned), 500, 0, {"share_right": right})
    assert json.loads(json.dumps(found, allow_nan=False))["regressions"] == ["down"]
    assert (found["prompts"], found["samples"], found["missing"]) == (100, 199, 1)
    assert found["total"]["delta"] == pytest.approx(sum(one["delta"] for one in found["dimensions"].values()))
    assert found["total"]["ci95"][0] > 0 and found["dimensions"]["up"]["ci95"][0] > 0
    low, high = found["dimensions"]["same"]["ci95"]
    assert low < 0 < high
    assert found["share_right"]["base"] == 0.0 and found["share_right"]["tuned"] == 1.0
    assert set(found["dimensions"]["up"]) == {"base", "tuned", "delta", "ci95", "win", "tie", "loss"}


def test_fewer_than_two_prompts_are_refused():
    with pytest.raises(ValueError, match="1 of 2 held-out prompts have scores of both models; .* at least 2"):
        contrast(table([1.0], [NAN]), table([1.0], [2.0]), 100, 0)
