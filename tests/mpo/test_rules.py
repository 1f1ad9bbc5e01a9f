import pytest
import torch

from mpo.config import RULES, ObjectiveConfig, PairsConfig
from mpo.draws import draws
from mpo.objectives import objectives
from mpo.pairs import choose_pairs
from mpo.rules import (
    at_random,
    by_majority,
    by_normalised_sum,
    by_pareto_frontier,
    by_total,
    preferred_pairs,
)

NAN = float("nan")


def level(*candidates, dims=None):
    """Objectives a, b, c ... of one prompt."""
    scores = torch.tensor([candidates], dtype=torch.float64)
    return objectives(scores, "abcd"[: scores.shape[-1]], dims or {})


def found(pairs):
    return list(zip(pairs.winner.tolist(), pairs.loser.tolist(), strict=True))


def test_the_total_forgives_what_dominance_does_not():
    three = level([5.0, 0.0], [0.0, 1.0], [NAN, 9.0])
    assert found(by_total(three, 1.0)) == [(0, 1)]
    assert found(preferred_pairs(three, "dominance", 1.0, 0)) == []


def test_the_majority_counts_objectives_not_their_size():
    # 0 beats 1 in a and b by little and loses c by little: 2 to 1, total +.5
    assert found(by_majority(level([1.0, 1.0, 0.0], [0.5, 0.5, 0.5]), 0.1)) == [(0, 1)]
    # total is greater, but 1 to 2
    assert found(by_majority(level([9.0, 0.0, 0.0], [0.0, 1.0, 1.0]), 0.1)) == []
    # 1 to 1 is no majority; an equal third objective has no vote
    assert found(by_majority(level([9.0, 0.0, 3.0], [0.0, 1.0, 3.0]), 0.1)) == []


def test_the_normalised_sum_weighs_objectives_alike():
    # a varies by hundreds, b by hundredths; in both, each is +1 or -1 deviation from the mean
    wide = level([200.0, 0.00], [0.0, 0.02], [200.0, 0.02], [0.0, 0.00])
    assert found(by_total(wide, 0.001)) == [(0, 1), (0, 3), (1, 3), (2, 0), (2, 1), (2, 3)]
    pairs = by_normalised_sum(wide, 0.5)  # 0 and 1 are equals now: 1 - 1 and -1 + 1
    assert found(pairs) == [(0, 3), (1, 3), (2, 0), (2, 1), (2, 3)]
    assert pairs.gap.tolist() == pytest.approx([2, 2, 2, 2, 4])  # in standard deviations


def test_the_normalised_sum_leaves_out_what_does_not_vary():
    constant = level([1.0, 7.0], [0.0, 7.0], [NAN, NAN])
    pairs = by_normalised_sum(constant, 0.1)
    assert found(pairs) == [(0, 1)] and pairs.gap.tolist() == pytest.approx([2.0])


def test_the_normalised_sum_keeps_the_weights():
    weighted = level([1.0, 0.0], [0.0, 1.0], dims={"a": ObjectiveConfig(weight=3.0)})
    pairs = by_normalised_sum(weighted, 0.1)
    assert found(pairs) == [(0, 1)] and pairs.gap.tolist() == pytest.approx([3 * 2 - 2])


def test_the_frontier_beats_what_lies_behind_it():
    # 0 and 1 are on the frontier, 1 dominates 2; 3 has no score. 0 beats 2 though it is worse in b.
    four = level([9.0, 0.0], [2.0, 2.0], [1.0, 1.0], [NAN, 0.0])
    assert found(by_pareto_frontier(four, 0.5)) == [(0, 2), (1, 2)]
    assert found(by_pareto_frontier(four, 3.0)) == [(0, 2)]
    assert found(by_pareto_frontier(level([3.0], [2.0], [1.0]), 0.5)) == [(0, 1), (0, 2)]  # never 1 over 2
    assert found(by_pareto_frontier(level([9.0, 0.0], [0.0, 1.0]), 0.5)) == []  # all of it is frontier


def test_the_frontier_knows_no_tolerance():
    lenient = level([9.0, 0.0], [0.0, 0.1], dims={"b": ObjectiveConfig(tolerance=1.0)})
    assert found(preferred_pairs(lenient, "dominance", 0.5, 0)) == [(0, 1)]
    assert found(by_pareto_frontier(lenient, 0.5)) == []


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "random"])
def test_no_rule_lets_a_held_objective_fall(rule):
    # 0 is far better in both others, but c is held and falls
    hold = {"c": ObjectiveConfig(role="hold")}
    assert found(preferred_pairs(level([9.0, 9.0, 0.0], [0.0, 0.0, 1.0], dims=hold), rule, 0.5, 0)) == []
    assert found(preferred_pairs(level([9.0, 9.0, 1.0], [0.0, 0.0, 1.0], dims=hold), rule, 0.5, 0)) == [
        (0, 1)
    ]


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_prefers_both_ways_or_what_has_no_score(rule):
    torch.manual_seed(0)
    scores = torch.randn(50, 6, 3, dtype=torch.float64)
    scores[torch.rand(50, 6) < 0.2] = NAN
    pairs = preferred_pairs(objectives(scores, "abc", {}), rule, 0.1, 0)
    rows = set(zip(pairs.prompt.tolist(), pairs.winner.tolist(), pairs.loser.tolist(), strict=True))
    assert rows and not any((p, j, i) in rows for p, i, j in rows)
    columns = (pairs.prompt, pairs.winner, pairs.loser)
    assert sorted(rows) == list(zip(*(column.tolist() for column in columns), strict=True))
    assert not any(scores[p, k].isnan().any() for p, i, j in rows for k in (i, j))


def test_random_pairs_are_all_pairs_with_even_odds():
    many = objectives(torch.randn(500, 5, 1, generator=torch.Generator().manual_seed(0)), "a", {})
    pairs = at_random(many, 3)
    assert len(pairs) == 500 * 10
    assert abs((pairs.gap > 0).double().mean() - 0.5) < 0.03  # 4 standard errors
    assert torch.equal(at_random(many, 3).winner, pairs.winner)
    assert not torch.equal(at_random(many, 4).winner, pairs.winner)
    assert torch.equal(at_random(many[:100], 3).winner, pairs.winner[:1000])  # other prompts do not matter


def test_draws_differ_and_are_even():
    keys = torch.arange(20_000)
    numbers = draws(1, keys)
    assert len(numbers.unique()) == 20_000
    shares = [((numbers >> bit) & 1).double().mean().item() for bit in range(64)]
    assert min(shares) > 0.48 and max(shares) < 0.52  # 5.6 standard errors
    assert not torch.equal(draws(1, keys, keys + 1), draws(1, keys + 1, keys))


def test_draws_are_splitmix64():
    # the generator's first output from state 0 is 0xE220A8397B1DCDAF; ours adds 1 to the state it mixes
    (number,) = draws(-1, torch.tensor([1])).tolist()
    assert number % 2**64 == 0xE220A8397B1DCDAF


def test_the_rule_of_the_config_is_used():
    two = level([5.0, 0.0], [0.0, 1.0])
    assert found(choose_pairs(two, PairsConfig(rule="total"), 0)) == [(0, 1)]
    with pytest.raises(ValueError, match="pairs.rule = majority finds none at pairs.margin = 0.1"):
        choose_pairs(two, PairsConfig(rule="majority"), 0)
    with pytest.raises(ValueError, match="must be one of dominance, total"):
        preferred_pairs(two, "best", 0.1, 0)
