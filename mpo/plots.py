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
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from mpo.ablation import Arm
    from mpo.ablation_results import Results
    from mpo.significance import Estimate
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
    margins = sorted({row.margin for row in report.rows})
    by_margin.set_xticks(margins, [f"{margin:.2g}" for margin in margins])
    by_margin.minorticks_off()
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


def axis_figure(found: Results, axis: str) -> Figure:
    """The change in every score along one axis: seeds as small marks, means with their 95 % intervals.

    Labels that are numbers stand in their order, and arms that agree in the other axes are joined by a line;
    along mere names a line would say nothing.
    """
    labels = [
        label for label in found.ablation.axes[axis] if any(a.labels[axis] == label for a in found.arms)
    ]
    numbers = all(map(_is_number, labels))
    labels = sorted(labels, key=float) if numbers else labels
    columns = min(4, len(found.scores))
    rows = -(-len(found.scores) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for panel, key in zip(panels, found.scores, strict=False):
        _axis_panel(panel, found, axis, labels, key, "-" if numbers else "")
    for number, panel in enumerate(panels):
        panel.set_visible(number < len(found.scores))
        panel.tick_params(labelbottom=number + columns >= len(found.scores))  # where no panel is below
        if sum(map(len, labels)) > 24:  # side by side they would run into each other
            for text in panel.get_xticklabels():
                text.set(rotation=30, ha="right", rotation_mode="anchor")
    panels[0].set_ylabel("change")
    handles, names = panels[0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, fontsize="small", loc="outside right upper")
    figure.suptitle(f"{found.ablation.name}: {axis}")
    return figure


def _axis_panel(
    panel: Axes, found: Results, axis: str, labels: Sequence[str], key: tuple[str, str], line: str
) -> None:
    """One score of `axis_figure`; `labels` from left to right."""
    others = dict.fromkeys(_others(arm, axis) for arm in found.arms)
    step = min(0.16, 0.6 / len(others))
    panel.axhline(0, color="grey", linewidth=0.8)
    for number, other in enumerate(others):
        arms = sorted(
            (arm for arm in found.arms if _others(arm, axis) == other),
            key=lambda arm: labels.index(arm.labels[axis]),
        )
        places = [labels.index(arm.labels[axis]) + step * (number - (len(others) - 1) / 2) for arm in arms]
        results = [found.result(arm.name, key) for arm in arms]
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)]}
        reach = [_reach(one.change) for one in results]
        means = [one.change.mean for one in results]
        panel.errorbar(places, means, reach, linestyle=line, capsize=3, label=other or None, **style)
        for place, one in zip(places, results, strict=True):
            beside = [place + 0.4 * step] * len(one.values)
            panel.plot(beside, one.values, ".", color=style["color"], alpha=0.6, markersize=4)
    panel.set(title=" ".join(key).replace("_", " "), xlim=(-0.5, len(labels) - 0.5))
    panel.set_xticks(range(len(labels)), labels)


def pareto_figure(found: Results, x: tuple[str, str], y: tuple[str, str]) -> Figure:
    """Arms by their change in two scores with 95 % intervals; those that none beats in both are joined."""
    points = {
        arm.name: (found.result(arm.name, x).change, found.result(arm.name, y).change) for arm in found.arms
    }
    best = sorted(
        (name for name in points if not any(_beats(points[other], points[name]) for other in points)),
        key=lambda name: points[name][0].mean,
    )
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.plot(
        [points[name][0].mean for name in best],
        [points[name][1].mean for name in best],
        color="grey",
        linestyle="--",
        linewidth=1,
        zorder=0,
    )
    for number, arm in enumerate(found.arms):
        across, up = points[arm.name]
        reach = [_reach(across), _reach(up)]
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[(number // len(COLOURS) + number) % len(MARKS)]
        label = ", ".join(arm.labels.values()) + (" (base arm)" if number == 0 else "")
        axes.errorbar(
            across.mean, up.mean, reach[1], reach[0], color=colour, marker=mark, label=label, elinewidth=0.7
        )
    names = [" ".join(key).replace("_", " ") for key in (x, y)]
    axes.set(xlabel=f"change in {names[0]}", ylabel=f"change in {names[1]}", title=found.ablation.name)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _reach(one: Estimate) -> float:
    return one.high - one.mean if one.high is not None else 0.0


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _others(arm: Arm, axis: str) -> str:
    return ", ".join(label for name, label in arm.labels.items() if name != axis)


def _beats(one: tuple[Estimate, Estimate], other: tuple[Estimate, Estimate]) -> bool:
    differences = [a.mean - b.mean for a, b in zip(one, other, strict=True)]
    return min(differences) >= 0 and max(differences) > 0
