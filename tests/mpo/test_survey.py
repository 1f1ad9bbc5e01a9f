"""What `mpo pairs` prints, and its plot, of scores whose yield is counted by hand."""

import pytest
import torch
from rich.console import Console

from mpo.config import GRANULARITIES, RunConfig
from mpo.objectives import objectives
from mpo.plots import yield_figure
from mpo.survey import Survey, print_survey
from mpo.yields import reach, yield_report

NAN = float("nan")


@pytest.fixture(scope="module")
def found():
    """Three prompts of three candidates and their 5 pairs: 3 dominate, by 1, 2 and 3; of the 2 others, wide
    by 2, b stops one, b and c the other."""
    scores = [
        [[0, 0, 0], [1, 0, 0], [3, 0, 0]],
        [[0, 1, 0], [3, 0, 0], [NAN, NAN, NAN]],
        [[0, 1, 1], [4, 0, 0], [NAN, NAN, NAN]],
    ]
    level = objectives(torch.tensor(scores, dtype=torch.float64), "abc", {})
    config = RunConfig(name="by hand")
    config.pairs.margin = 1.0
    report = yield_report(dict.fromkeys(GRANULARITIES, level), [1.0, 2.5], counts=[2])
    reaches = [reach(level, name, 0.43, 1.0, [True] * 3) for name in GRANULARITIES]
    return Survey(config, report, 0.43, tuple(reaches), (), 7)


def test_the_answers_are_printed(found, monkeypatch, capsys):
    monkeypatch.setattr("mpo.survey.console", Console(width=200, soft_wrap=True))
    print_survey(found)
    lines = capsys.readouterr().out.splitlines()
    assert "  dimension: 40% at pairs.margin=1.5" in lines  # 2 of 5 pairs; 1 would be 20 %, 3 would be 60 %
    assert any(line.startswith("43% of all pairs would be 1.3 a prompt of 3; ") for line in lines)
    assert "7 prompts have no scores yet and are not counted" in lines
    assert "2 candidates have no score and are in no pair" in lines
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert ["dimension", "1", "3", "60%", "1.00", "2"] in rows  # margin, pairs, share, a prompt, without
    assert ["2", *["0.33 (2)"] * 4] in rows and ["3", *["1.00 (2)"] * 4] in rows  # by candidates
    assert [row[1:] for row in rows if row[0] == "dimension" and row[1] in ("a", "b", "c")] == [
        ["b", "40%", "20%"],
        ["c", "20%", "0%"],
    ]


def test_the_plot_has_the_shares_the_counts_and_what_blocks(found):
    by_margin, by_count, blocks = yield_figure(found).axes
    curves = [
        {line.get_label(): line for line in panel.lines}["dimension"] for panel in (by_margin, by_count)
    ]
    points = [[tuple(map(float, point)) for point in curve.get_xydata()] for curve in curves]
    assert points[0] == [(1.0, pytest.approx(60)), (2.5, pytest.approx(20))]
    assert points[1] == [(2, pytest.approx(1 / 3)), (3, 1)]
    assert [list(line.get_ydata()) for line in by_margin.lines if line.get_linestyle() == "--"] == [[43, 43]]
    names = [label.get_text() for label in blocks.get_yticklabels()]
    stops, alone = ([bar.get_width() for bar in bars] for bars in blocks.containers)
    assert (
        names == ["a", "c", "b"]
        and stops == pytest.approx([0, 20, 40])
        and alone == pytest.approx([0, 0, 20])
    )
