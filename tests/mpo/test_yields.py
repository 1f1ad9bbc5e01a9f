import json

import pytest
import torch

from mpo.config import RULES, ObjectiveConfig
from mpo.objectives import objectives
from mpo.rules import at_random
from mpo.yields import agreement, reach, rule_yields, subsample, yield_report

NAN = float("nan")


def level(*prompts, dims=None):
    scores = torch.tensor(prompts, dtype=torch.float64)
    return objectives(scores, "abcd"[: scores.shape[-1]], dims or {})


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


def ladder(*totals, b=None):
    """One prompt of two objectives whose first is `totals`; b is 0 if not given."""
    return level([[a, other] for a, other in zip(totals, b or [0.0] * len(totals), strict=True)])


def test_the_margin_that_gives_a_share_lies_halfway_between_the_gaps_around_it():
    # gaps of 0, 1, 3, 7: 7, 6, 4, 3, 2, 1, so half of the six pairs are those of 4 or more; 3 is the next
    found = reach(ladder(0.0, 1.0, 3.0, 7.0), "dimension", 0.5, 0.1, [True, True])
    assert (found.margin, found.share, found.tolerance) == (3.5, 0.5, None)
    every = reach(ladder(0.0, 1.0, 3.0, 7.0), "dimension", 1.0, 0.1, [True, True])
    assert (every.margin, every.share) == (0.5, 1.0)
    row = yield_report({"dimension": ladder(0.0, 1.0, 3.0, 7.0)}, [found.margin]).rows[0]
    assert row.share == 0.5


def test_ties_go_together_to_the_nearest_share():
    # gaps 1, 1, 1, 2, 2, 3 of 0, 1, 2, 3: shares go 1/6, 3/6, 1; 0.43 is nearest to 3/6
    found = reach(ladder(0.0, 1.0, 2.0, 3.0), "dimension", 0.43, 0.1, [True, True])
    assert (found.margin, found.share) == (1.5, 0.5)


def test_where_no_margin_gives_the_share_a_tolerance_may():
    # b falls by 1, 2 and 3 where a rises: none dominates; tolerance 1 lets two pairs through, of three
    stopped = ladder(0.0, 10.0, 20.0, b=[0.0, -1.0, -2.0])
    assert yield_report({"dimension": stopped}, [0.1]).rows[0].pairs == 0
    found = reach(stopped, "dimension", 0.6, 0.1, [True, True])
    assert (found.margin, found.share) == (None, 0.0)
    assert found.tolerance == 1.5 and found.share_tolerant == pytest.approx(2 / 3)
    tolerant = objectives(stopped.values, "ab", {}, tolerance=found.tolerance)
    assert yield_report({"dimension": tolerant}, [0.1]).rows[0].pairs == 2
    own = reach(stopped, "dimension", 0.6, 0.1, [True, False])  # b has a tolerance of its own: 0
    assert (own.margin, own.tolerance, own.share_tolerant) == (None, None, 0.0)


def test_rules_are_compared_over_the_same_candidates():
    # 0 and 1 trade a for b (total +1), 2 is behind both
    three = level([[3.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
    found = {row.rule: row for row in rule_yields(three, RULES, 0.5, 0)}
    assert (found["dominance"].pairs, found["dominance"].dominating) == (2, 1.0)
    assert (found["total"].pairs, found["total"].share) == (3, 1.0)
    assert found["total"].dominating == pytest.approx(2 / 3)
    assert found["total"].against == 0.0
    assert found["random"].pairs == 3
    wrong = sum((w, v) in {(1, 0), (2, 0), (2, 1)} for w, v in at_random_rows(three))
    assert found["random"].against == pytest.approx(wrong / 3)


def at_random_rows(one):
    pairs = at_random(one, 0)
    return zip(pairs.winner.tolist(), pairs.loser.tolist(), strict=True)
