import pytest
import torch
from scipy import stats

from mpo.significance import holm, over_seeds, paired

NAN = float("nan")


def test_the_interval_over_seeds_is_students():
    # 1, 2, 3: mean 2, variance 1, standard error 1/sqrt(3), t(.975, 2) = 4.3027
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.302653 / 3**0.5)
    assert found.p == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0], 0.0).pvalue)
    assert over_seeds([1.5]).low is None and over_seeds([1.5]).mean == 1.5


def test_without_an_effect_of_seeds_it_is_the_paired_test_over_prompts():
    torch.manual_seed(0)
    prompts = torch.randn(20, dtype=torch.float64) + 0.4
    found = paired(prompts.expand(3, 20))
    reference = stats.ttest_1samp(prompts.numpy(), 0.0)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval()))


def test_without_an_effect_of_prompts_it_is_the_paired_test_over_seeds():
    seeds = torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64)
    found = paired(seeds[:, None].expand(3, 50))
    assert found.p == pytest.approx(stats.ttest_1samp(seeds.numpy(), 0.0).pvalue)


def test_with_both_it_is_clarks_quasi_f():
    # seeds +-1, prompts +-1, no rest, mean 1/2: MS_seeds = 4 * 2 = 8, MS_prompts = 2 * 4/3 = 8/3
    d = 0.5 + torch.tensor([[1.0], [-1.0]]) + torch.tensor([1.0, 1.0, -1.0, -1.0])
    variance = (8 + 8 / 3) / 8
    freedom = (8 + 8 / 3) ** 2 / (64 / 1 + (8 / 3) ** 2 / 3)
    assert paired(d).p == pytest.approx(2 * stats.t.sf(0.5 / variance**0.5, freedom))


def test_two_seeds_whose_effect_is_barely_there_have_a_p_value():
    # seeds, prompts and their rest all just as large: (1 + 1 - 1)^2 / (1/1 + 1/3 + 1/3) < 1 degree of freedom
    rest = torch.tensor([1.0, -1.0, 1.0, -1.0]) * torch.tensor([[1.0], [-1.0]])  # MS_rest = 8/3
    seeds = torch.tensor([[0.6], [-0.6]])  # MS_seeds = 4 * 0.72 = 2.88
    prompts = torch.tensor([1.01, 1.01, -1.01, -1.01])  # MS_prompts = 2 * 4 * 1.01^2 / 3 = 2.72
    variance = (2.88 + 8 / 3 * 1.01**2 - 8 / 3) / 8
    found = paired((0.5 + seeds + prompts + rest).double())
    assert found.p == pytest.approx(2 * stats.t.sf(0.5 / variance**0.5, 1), rel=1e-6)


def test_one_seed_is_tested_over_prompts_and_a_missing_prompt_is_left_out():
    found = paired(torch.tensor([[1.0, NAN, 2.0, 3.0]]))
    assert found.p == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0], 0.0).pvalue)
    with pytest.raises(ValueError, match="no prompt"):
        paired(torch.tensor([[1.0, NAN], [NAN, 1.0]]))


def test_equal_arms_do_not_differ():
    assert paired(torch.zeros(3, 10)).p == 1.0


@pytest.mark.parametrize(("seeds", "prompts"), [(0.0, 0.0), (0.3, 0.0), (0.0, 1.0), (0.3, 1.0)])
def test_arms_that_do_not_differ_are_called_different_as_rarely_as_it_says(seeds, prompts):
    draw = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    tests = [paired(seeds * noise(3, 1) + prompts * noise(1, 40) + noise(3, 40)).p < 0.05 for _ in range(600)]
    assert sum(tests) / 600 < 0.05 + 3 * 0.009  # the standard error of a rate of 5 % is .9 %


def test_holms_steps():
    # ranked .01 * 4, .02 * 3, .03 * 2, .5 * 1, and never less than the one before
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([]) == []
