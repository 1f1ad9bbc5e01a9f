"""An ablation's plots: what stands where, and what is joined."""

import pytest
from scipy import stats

from mpo.ablation import Ablation
from mpo.ablation_results import Result, Results
from mpo.plots import axis_figure, pareto_figure
from mpo.significance import over_seeds

SCORES = [("judge", name) for name in ("total", "a", "b", "c", "d")]


def panels(axis):
    """The visible panels of an ablation of one axis with two seeds, by title."""
    ablation = Ablation("trial", "base.yaml", {"axis": {label: {} for label in axis}}, seeds=[0, 1])
    arms = ablation.arms()
    found = [
        Result(arm.name, *key, over_seeds([rank, rank + 1.0]), None, None, [rank, rank + 1.0])
        for key in SCORES
        for rank, arm in enumerate(arms)
    ]
    counts, seeds = {arm.name: 9.0 for arm in arms}, {arm.name: [0, 1] for arm in arms}
    figure = axis_figure(Results(ablation, arms, counts, seeds, [], found, 0), "axis")
    return {panel.get_title(): panel for panel in figure.axes if panel.get_visible()}


def means(panel):
    """x, y and style of the line through the means; the first line is the one at 0."""
    line = panel.lines[1]
    return [round(x) for x in line.get_xdata()], list(line.get_ydata()), line.get_linestyle()


def test_numbers_stand_in_order_and_are_joined():
    panel = panels(["200", "50", "1000"])["judge a"]  # the base arm, 200, comes first in the file
    assert [text.get_text() for text in panel.get_xticklabels()] == ["50", "200", "1000"]
    assert means(panel) == ([0, 1, 2], [1.5, 0.5, 2.5], "-")


def test_names_stand_as_in_the_file_and_are_not_joined():
    found = panels(["sigmoid", "ipo"])
    assert [text.get_text() for text in found["judge a"].get_xticklabels()] == ["sigmoid", "ipo"]
    assert means(found["judge a"]) == ([0, 1], [0.5, 1.5], "None")


def test_every_lowest_panel_names_the_labels():
    found = panels(
        ["sigmoid", "ipo"]
    )  # five panels in rows of four: the second to the fourth have none below
    shown = [name for name, panel in found.items() if panel.xaxis.get_tick_params()["labelbottom"]]
    assert shown == ["judge a", "judge b", "judge c", "judge d"]


def test_arms_stand_by_two_scores_with_both_intervals_and_those_that_none_beats_are_joined():
    ablation = Ablation("trial", "base.yaml", {"axis": {label: {} for label in "pqr"}}, seeds=[0, 1])
    arms = ablation.arms()
    x, y = SCORES[1], SCORES[2]
    seeds = {  # of both seeds in x and in y; r is behind q in both
        "p": ([-0.1, 0.1], [1.9, 2.1]),
        "q": ([0.8, 1.2], [1.0, 1.0]),
        "r": ([0.5, 0.5], [0.2, 0.8]),
    }
    found = [
        Result(arm.name, *key, over_seeds(seeds[arm.name][k]), None, None, seeds[arm.name][k])
        for k, key in enumerate((x, y))
        for arm in arms
    ]
    counts, ran = {arm.name: 9.0 for arm in arms}, {arm.name: [0, 1] for arm in arms}
    (axes,) = pareto_figure(Results(ablation, arms, counts, ran, [], found, 0), x, y).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("change in judge a", "change in judge b")
    (joined,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert list(map(tuple, joined.get_xydata())) == [pytest.approx((0, 2)), pytest.approx((1, 1))]
    points, t = {}, stats.t.ppf(0.975, 1)
    for point in axes.containers:
        line, _, (across, up) = point
        points[point.get_label()] = line.get_xydata()[0].tolist()
        (wide,), (high,) = across.get_segments(), up.get_segments()
        for segment, side, values in ((wide, 0, "x"), (high, 1, "y")):
            own = seeds[point.get_label()[0]]["xy".index(values)]
            reach = t * abs(own[1] - own[0]) / 2  # Student's, of two values
            assert segment[:, side] == pytest.approx([sum(own) / 2 - reach, sum(own) / 2 + reach])
    assert list(points) == ["p (base arm)", "q", "r"]
    assert list(points.values()) == [pytest.approx(mean) for mean in ([0, 2], [1, 1], [0.5, 0.5])]
