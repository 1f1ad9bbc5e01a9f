"""Bar charts of scorecards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rewards.scorecard import Scorecard

MOST = 10  # items drawn one by one, as many as there are colours; of more, the mean


def plot_scorecards(cards: Sequence[Scorecard], level: str, path: str | Path) -> None:
    """Writes a PNG with a bar for every column of a level: per item, or the mean of more than ten."""
    scored = [card for card in cards if card.missing is None]
    if not scored:
        raise ValueError(f"{path}: no item has a score, so there is nothing to plot")
    names = list(scored[0].level(level))
    series = [(Path(card.item).name, list(card.level(level).values())) for card in scored]
    if len(scored) > MOST:
        columns = zip(*(values for _, values in series), strict=True)
        series = [(f"mean of {len(scored)} items", [sum(column) / len(scored) for column in columns])]
    height = 0.8 / len(series)
    figure = Figure(figsize=(9, 1.2 + 0.22 * len(names) * max(len(series), 2)), layout="constrained")
    axes = figure.subplots()
    for row, (name, values) in enumerate(series):
        places = [place + (row - (len(series) - 1) / 2) * height for place in range(len(names))]
        axes.barh(places, values, height=height, label=name)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"{scored[0].reduction} of weight x answer ({scored[0].coding})")
    axes.set_title(scored[0].reward)
    axes.legend(fontsize="small")
    part = Path(f"{path}.{os.getpid()}.part")
    with part.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    part.replace(path)
