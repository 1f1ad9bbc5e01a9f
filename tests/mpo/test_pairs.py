import json
from itertools import combinations

import pytest
import torch

from mpo.config import ObjectiveConfig, PairsConfig
from mpo.dominance import Pairs, dominating_pairs
from mpo.objectives import objectives
from mpo.pairs import agreement, choose_pairs, select, subsample, yield_report

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


def test_the_yield_report_counts_pairs_and_names_what_blocks():
    # prompt 0: (0,1) dominates with gap 2. prompt 1: gap 2, stopped by b.
    two = level([[2.0, 0.0], [0.0, 0.0], [NAN, NAN]], [[3.0, 0.0], [0.0, 1.0], [NAN, NAN]])
    report = yield_report({"dimension": two}, [1.0, 3.0])
    assert (report.prompts, report.candidates, report.missing) == (2, 3, 2)
    near, far = report.rows
    assert (near.granularity, near.margin, near.candidates) == ("dimension", 1.0, 3)
    assert (near.pairs, near.prompts_without) == (1, 1)
    assert near.share == 1 / 2 and near.pairs_per_prompt == 0.5
    assert near.blocks == {"a": 0.0, "b": 0.5} and near.blocks_alone == {"a": 0.0, "b": 0.5}
    assert (far.pairs, far.prompts_without, far.blocks) == (0, 2, {"a": 0.0, "b": 0.0})


def test_the_yield_report_is_json_with_none_for_undefined_correlations():
    constant = level([[2.0, 7.0], [0.0, 7.0]])
    content = json.loads(json.dumps(yield_report({"dimension": constant}, [1.0]).to_dict(), allow_nan=False))
    assert content["agreement"][0]["correlation"] == [[1.0, None], [None, None]]
    assert content["rows"][0]["blocks"] == {"a": 0.0, "b": 0.0}


def test_agreement_is_the_correlation_within_prompts():
    # within each prompt b = -a; between prompts both rise together, which must not count
    values = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[100.0, 101.0], [101.0, 100.0]]], dtype=torch.float64)
    assert torch.allclose(agreement(values), torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64))


def test_agreement_leaves_missing_candidates_out():
    values = torch.tensor([[[0.0, 0.0], [1.0, 2.0], [NAN, NAN]]], dtype=torch.float64)
    assert torch.allclose(agreement(values), torch.ones(2, 2, dtype=torch.float64))


def test_a_held_objective_can_block():
    hold = level([[2.0, 0.0], [0.0, 1.0]], dims={"b": ObjectiveConfig(role="hold")})
    assert yield_report({"dimension": hold}, [1.0]).rows[0].blocks == {"a": 0.0, "b": 1.0}


def test_fewer_candidates_are_drawn_from_those_with_scores():
    many = level(*[[[1.0], [NAN], [2.0], [3.0], [NAN]]] * 300)
    two = subsample(many, 2, seed=0)
    assert two.total.shape == (300, 2) and two.valid.all()
    seen = [tuple(sorted(pair)) for pair in two.total.tolist()]
    assert all(seen.count(pair) > 70 for pair in [(1, 2), (1, 3), (2, 3)])  # 100 each, give or take 8
    assert torch.equal(two.values[..., 0], two.total)  # values and totals of the same candidates
    assert subsample(many, 4, seed=0).valid.sum(1).tolist() == [3] * 300  # there are no more
    assert torch.equal(subsample(many, 2, seed=0).total, two.total)
    assert not torch.equal(subsample(many, 2, seed=1).total, two.total)


def test_the_share_of_pairs_does_not_depend_on_the_number_of_candidates():
    torch.manual_seed(0)
    scored = objectives(torch.randn(3000, 8, 2), "ab", {})
    report = yield_report({"dimension": scored}, [0.1, 0.5], counts=[4, 2, 8, 1])
    assert [(row.candidates, row.margin) for row in report.rows] == [
        (count, margin) for count in (8, 4, 2) for margin in (0.1, 0.5)
    ]
    near = {row.candidates: row for row in report.rows if row.margin == 0.1}
    for count, row in near.items():
        assert row.share == pytest.approx(near[8].share, rel=0.08)
        assert row.pairs_per_prompt == pytest.approx(row.share * count * (count - 1) / 2)
    assert near[8].prompts_without < near[4].prompts_without < near[2].prompts_without
