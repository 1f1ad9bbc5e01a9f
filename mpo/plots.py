"""Figures of yields and ablations with matplotlib, in colours that colour-blind readers can tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mpo.config import GRANULARITIES
from mpo.store import writing

if TYPE_CHECKING:
    from mpo.survey import Survey

# Okabe and Ito's palette, and a mark for each, so that colour is never the only difference.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` as .svg or .png, whole or not at all. Raises ValueError for another suffix."""
    kinds = {".svg": (FigureCanvasSVG, "print_svg"), ".png": (FigureCanvasAgg, "print_png")}
    if path.suffix not in kinds:
        raise ValueError(f"{path}: a plot is written as {' or '.join(kinds)}")
    canvas, method = kinds[path.suffix]
    with writing(path) as temporary, temporary.open("wb") as file:
        getattr(canvas(figure), method)(file)


def yield_figure(found: Survey) -> Figure:
    """Share of pairs by margin, pairs a prompt by candidates, and what blocks at the run's granularity."""
    report, config = found.report, found.config
    figure = Figure(figsize=(13, 4), layout="constrained")
    by_margin, by_count, blocks = figure.subplots(1, 3)
    for name, colour, mark in zip(GRANULARITIES, COLOURS, MARKS, strict=False):
        rows = [row for row in report.rows if row.granularity == name]
        whole = [row for row in rows if row.candidates == report.candidates]
        style = {"color": colour, "marker": mark, "label": name}
        by_margin.plot([row.margin for row in whole], [100 * row.share for row in whole], **style)
        near = sorted(
            (row for row in rows if row.margin == config.pairs.margin), key=lambda row: row.candidates
        )
        by_count.plot([row.candidates for row in near], [row.pairs_per_prompt for row in near], **style)
    by_margin.axhline(100 * found.wanted, color="grey", linestyle="--", linewidth=1)
    by_margin.annotate(
        f"{found.wanted:.0%}",
        (1, 100 * found.wanted),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
    )
    by_margin.axvline(config.pairs.margin, color="grey", linestyle=":", linewidth=1)
    by_margin.set(xscale="log", xlabel="margin in the total", ylabel="% of all pairs", ylim=(0, None))
    by_count.set(xlabel="candidates a prompt", ylabel=f"pairs a prompt at margin {config.pairs.margin:g}")
    by_count.set_ylim(0, None)
    by_margin.legend(fontsize="small")
    row = found.row(config.objectives.granularity)
    names = sorted(row.blocks, key=lambda name: row.blocks[name])[-12:]
    blocks.barh(names, [100 * row.blocks[name] for name in names], color=COLOURS[5], label="stops")
    blocks.barh(names, [100 * row.blocks_alone[name] for name in names], color=COLOURS[0], label="alone")
    blocks.set(xlabel="% of the pairs wide enough in total", title=f"what blocks, by {row.granularity}")
    blocks.legend(fontsize="small", loc="lower right")
    return figure
