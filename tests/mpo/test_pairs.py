from itertools import combinations

import pytest
import torch

from mpo.config import PairsConfig
from mpo.dominance import Pairs, dominating_pairs
from mpo.objectives import objectives
from mpo.pairs import choose_pairs, select

NAN = float("nan")


def level(*prompts, dims=None):
    scores = torch.tensor(prompts, dtype=torch.float64)
    return objectives(scores, "abcd"[: scores.shape[-1]], dims or {})


def rows(pairs):
    return list(zip(pairs.prompt.tolist(), pairs.winner.tolist(), pairs.loser.tolist(), strict=True))


def chosen(objectives, seed=0, **settings):
    return rows(choose_pairs(objectives, PairsConfig(**settings), seed))


def test_all_keeps_every_dominating_pair():
    assert chosen(level([[2.0], [1.0], [0.0]])) == [(0, 0, 1), (0, 0, 2), (0, 1, 2)]


def test_top_keeps_the_widest_gaps_of_each_prompt():
    ladder = level([[4.0], [3.0], [0.0]], [[0.0], [1.0], [1.5]])  # gaps 1, 4, 3 and 1, 1.5, .5
    assert chosen(ladder, select="top", k=1) == [(0, 0, 2), (1, 2, 0)]
    assert chosen(ladder, select="top", k=2) == [(0, 0, 2), (0, 1, 2), (1, 1, 0), (1, 2, 0)]
    assert chosen(ladder, select="top", k=2, cap=1) == [(0, 0, 2), (1, 2, 0)]


def test_gaps_that_differ_by_rounding_are_ties():
    # gaps .3 - .2 and .1 - 0 differ by rounding only; the first in order is kept
    assert 0.3 - 0.2 < 0.1 - 0.0
    gaps = torch.tensor([0.3 - 0.2, 0.1 - 0.0], dtype=torch.float64)
    tied = Pairs(torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([1, 3]), gaps)
    assert rows(select(tied, torch.zeros(1, 4), PairsConfig(select="top", k=1), 0)) == [(0, 0, 1)]


def test_best_worst_takes_the_best_winner_and_the_worst_that_it_dominates():
    # totals 10, 6, 0, 9. The best, 0, falls in b against 1 and 2, so it dominates 3 alone (gap 1),
    # though 1 beats 2 by 6.
    four = level([[10.0, 0.0], [3.0, 3.0], [-1.0, 1.0], [9.0, 0.0]])
    assert (0, 1, 2) in rows(dominating_pairs(four, 0.1))
    assert chosen(four, select="best_worst") == [(0, 0, 3)]
    assert chosen(level([[0.0], [2.0], [1.0]]), select="best_worst") == [(0, 1, 0)]


def test_a_cap_samples_for_each_prompt_by_itself_and_by_the_seed():
    torch.manual_seed(0)
    many = level(*torch.randn(200, 6, 1).tolist())
    every, capped = set(chosen(many, margin=1e-6)), chosen(many, margin=1e-6, cap=3)
    assert len(every) == 200 * 15 and len(capped) == 200 * 3
    assert set(capped) <= every and capped == sorted(capped)
    assert chosen(many, margin=1e-6, cap=3) == capped
    assert chosen(many, seed=1, margin=1e-6, cap=3) != capped
    first = level(*many.values[:50].tolist())  # other prompts do not matter
    assert chosen(first, margin=1e-6, cap=3) == [row for row in capped if row[0] < 50]


def test_a_cap_samples_evenly():
    """2,000 prompts, 15 pairs each of which 5 are kept: each of the 15 is kept 667 times, give or take 21."""
    ladder = level(*[[[float(n)] for n in range(6)]] * 2000)
    kept = chosen(ladder, cap=5)
    counts = [sum((w, v) == (j, i) for _, w, v in kept) for i, j in combinations(range(6), 2)]
    assert sum(counts) == 10_000
    assert max(abs(count - 10_000 / 15) for count in counts) < 5 * 21.1


def test_no_pair_for_want_of_scores_says_so():
    with pytest.raises(ValueError, match="only 1 of 2 candidates have scores, never two of one prompt"):
        chosen(level([[1.0], [NAN]]))


def test_no_pair_for_want_of_a_gap_names_the_widest():
    with pytest.raises(
        ValueError, match=r"pairs\.margin = 0\.5 .*the widest differ by 0\.25: lower pairs\.margin"
    ):
        chosen(level([[1.0], [0.75]]), margin=0.5)


def test_no_pair_for_want_of_dominance_names_the_binding_dimensions():
    blocked = level([[9.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[9.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    with pytest.raises(ValueError) as error:
        chosen(blocked)
    message = str(error.value)
    assert "2 differ by pairs.margin" in message and "b (100%), c (50%)" in message and "a (" not in message
    assert "objectives.dims.b.tolerance" in message and "\n" not in message
