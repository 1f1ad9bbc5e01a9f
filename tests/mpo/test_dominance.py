import math

import pytest
import torch

from mpo import dominance
from mpo.config import ObjectiveConfig
from mpo.dominance import dominating_pairs, tally
from mpo.objectives import objectives

NAN = float("nan")


def judged(candidates, dims=None, tolerance=0.0):
    """Objectives a, b, c ... of one prompt from a list of candidates."""
    scores = torch.tensor([candidates], dtype=torch.float64)
    return objectives(scores, "abcdefghi"[: scores.shape[-1]], dims or {}, tolerance)


def found(*args, margin=0.5, **kwargs):
    pairs = dominating_pairs(judged(*args, **kwargs), margin)
    return list(zip(pairs.winner.tolist(), pairs.loser.tolist(), strict=True))


def by_double_loop(objectives, margin):
    """The definition, one pair at a time."""
    rows = []
    values, total, least = objectives.values.tolist(), objectives.total.tolist(), objectives.least.tolist()
    for p, prompt in enumerate(values):
        for i, winner in enumerate(prompt):
            for j, loser in enumerate(prompt):
                gap = total[p][i] - total[p][j]
                above = all(w - v >= low for w, v, low in zip(winner, loser, least, strict=True))
                if above and gap >= margin:
                    rows.append((p, i, j, gap))
    return rows


def as_rows(pairs):
    return list(
        zip(*(part.tolist() for part in (pairs.prompt, pairs.winner, pairs.loser, pairs.gap)), strict=True)
    )


def test_a_winner_is_nowhere_worse_and_better_by_the_margin():
    assert found([[1.0, 1.0], [1.0, 0.0]]) == [(0, 1)]  # equal in a, better in b
    assert found([[1.0, 1.0], [3.0, 0.9]]) == []  # total better by 1.9, but b falls
    assert found([[1.0, 1.0], [1.0, 0.75]]) == []  # better by .25, less than the margin of .5
    assert found([[1.0, 1.0], [1.0, 1.0]]) == []  # a candidate never dominates its equal


def test_a_tolerance_forgives_a_small_fall():
    assert found([[1.0, 1.0], [3.0, 0.9]], tolerance=0.2) == [(1, 0)]
    assert found([[1.0, 1.0], [3.0, 0.7]], tolerance=0.2) == []


def test_a_held_objective_may_not_fall_and_does_not_count():
    hold = {"b": ObjectiveConfig(role="hold", tolerance=0.1)}
    assert found([[1.0, 9.0], [1.0, 0.0]], hold) == []  # all of the gap is in b, which does not count
    assert found([[2.0, 0.0], [1.0, 0.05]], hold) == [(0, 1)]
    assert found([[2.0, 0.0], [1.0, 0.2]], hold) == []


def test_an_objective_may_ask_for_its_own_margin():
    own = {"b": ObjectiveConfig(margin=0.5)}
    assert found([[3.0, 0.4], [1.0, 0.0]], own) == []
    assert found([[3.0, 0.5], [1.0, 0.0]], own) == [(0, 1)]


def test_an_ignored_objective_stops_nothing():
    assert found([[1.0, 0.0], [0.0, 9.0]]) == []
    assert found([[1.0, 0.0], [0.0, 9.0]], {"b": ObjectiveConfig(role="ignore")}) == [(0, 1)]


def test_scores_that_are_equal_but_for_rounding_are_equal():
    one, other = 0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1
    assert one != other
    assert found([[other, 1.0], [one, 0.0]]) == [(0, 1)] and found([[one, 1.0], [other, 0.0]]) == [(0, 1)]
    assert 0.3 - 0.2 < 0.1  # a gap that is the margin but for rounding
    assert found([[0.3], [0.2]], margin=0.1) == [(0, 1)]
    assert found([[one], [other]], margin=1e-12) == []  # rounding is never a gap


def test_missing_candidates_enter_no_pair():
    assert found([[2.0, 2.0], [NAN, 1.0], [NAN, NAN], [1.0, 1.0]]) == [(0, 3)]


@pytest.mark.parametrize("chunk", [1, 7 * 36, 1 << 17])
def test_the_result_is_that_of_the_double_loop_for_every_chunk(monkeypatch, chunk):
    monkeypatch.setattr(dominance, "_CHUNK", chunk)
    torch.manual_seed(0)
    scores = torch.randint(-2, 3, (50, 6, 3)).double()
    scores[torch.rand(50, 6) < 0.2] = NAN
    dims = {"a": ObjectiveConfig(role="hold", tolerance=1.0), "c": ObjectiveConfig(weight=2.0, margin=1.0)}
    level = objectives(scores, ("a", "b", "c"), dims)
    rows = as_rows(dominating_pairs(level, 1.5))
    assert rows == by_double_loop(level, 1.5)
    assert len(rows) > 50


def test_independent_objectives_dominate_as_often_as_theory_says():
    """K independent objectives: a pair dominates one way or the other with probability 2 * 2^-K."""
    torch.manual_seed(0)
    level = objectives(torch.randn(4000, 8, 5), "abcde", {})
    share = len(dominating_pairs(level, 1e-6)) / (4000 * 28)
    assert math.isclose(share, 2 * 2**-5, rel_tol=0.05)  # 1.75 pairs a prompt


def test_no_margin_is_refused():
    for margin in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match="must be greater than 0"):
            dominating_pairs(judged([[1.0], [0.0]]), margin)


def test_the_tally_counts_what_passes_and_what_stops():
    # (0,1) dominates with gap 3; (0,2) gap 2.5 is stopped by b; (2,1) gap .5 is stopped by a
    level = judged([[2.0, 1.0], [0.0, 0.0], [-2.0, 2.5], [NAN, NAN]])
    counts = tally(level, [0.1, 1.0, 2.75, 9.0])
    assert counts.comparable == 3
    assert counts.wide.tolist() == [3, 2, 1, 0]
    assert counts.dominating.tolist() == [1, 1, 1, 0]
    assert counts.prompts_without.tolist() == [0, 0, 0, 1]
    assert counts.blocks.tolist() == [[1, 1], [0, 1], [0, 0], [0, 0]]
    assert counts.blocks_alone.tolist() == [[1, 1], [0, 1], [0, 0], [0, 0]]
    assert counts.widest == 3.0


def test_an_objective_that_stops_together_with_another_does_not_stop_alone():
    counts = tally(judged([[5.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), [0.1])
    assert counts.blocks.tolist() == [[0, 1, 1]]
    assert counts.blocks_alone.tolist() == [[0, 0, 0]]


def test_the_tally_agrees_with_the_pairs():
    torch.manual_seed(1)
    level = objectives(torch.randn(40, 5, 2), "ab", {})
    counts = tally(level, [0.1, 1.0])
    for g, margin in enumerate((0.1, 1.0)):
        pairs = dominating_pairs(level, margin)
        assert counts.dominating[g] == len(pairs)
        assert counts.prompts_without[g] == 40 - len(pairs.prompt.unique())
