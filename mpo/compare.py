"""Finished runs side by side: held-out scores, paired by prompt where prompts are shared, and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mpo import charts
from mpo.artifacts import Run
from mpo.config import as_written
from mpo.embed import data_uri
from mpo.gallery import Card, Gallery, Samples, asked, pack, spread_cards, total
from mpo.objectives import in_words
from mpo.report import assets, template
from mpo.scores import ScoreTable, read_scores
from mpo.statistics import bootstrap_interval
from mpo.store import Artifact, read_table

if TYPE_CHECKING:
    from mpo.ablation_tables import Table

_PLACES = ("name", "run_dir", "store")  # settings that say where a run lies, not what it is


@dataclass(frozen=True)
class Cell:
    """A run's mean score over its prompts, and how far it is from the first run's."""

    mean: float
    delta: float
    ci95: tuple[float, float]  # of delta; both (0, 0) for the first run itself

    @property
    def clear(self) -> bool:
        """The interval does not hold zero."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


@dataclass(frozen=True)
class Comparison:
    """reward -> score -> a cell for each run, first the run that the others are compared with."""

    names: list[str]
    paired: bool  # by prompt; otherwise the intervals take the runs as independent
    prompts: list[int]  # that each run was evaluated on
    scores: dict[str, dict[str, list[Cell]]]
    settings: dict[str, list[Any]]  # setting -> its value in each run, of those that differ


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """The tuned models of evaluated runs, by every reward and dimension that all of them have.

    Raises ValueError for fewer than two runs, a run that is not evaluated, or no dimension in common.
    """
    if len(runs) < 2:
        raise ValueError("diff: needs at least two runs")
    for run in runs:
        if not run.artifacts.evaluation.done:
            raise ValueError(f"{run.folder}: is not evaluated yet; mpo run it first")
    prompts = [sorted(run.heldout_prompts) for run in runs]
    paired = all(found == prompts[0] for found in prompts)
    resamples, seed = runs[0].config.evaluate.bootstrap, runs[0].config.seed
    scores = {}
    for reward in _rewards(runs):
        means = [_prompt_means(run, reward) for run in runs]
        shared = [name for name in means[0][0] if all(name in names for names, _ in means)]
        columns = [(found, [names.index(name) for name in shared]) for names, found in means]
        first = {prompt: values[columns[0][1]] for prompt, values in columns[0][0].items()}
        scores[reward] = {name: [] for name in shared}
        for found, picked in columns:
            ours = {prompt: values[picked] for prompt, values in found.items()}
            for name, cell in zip(shared, _cells(first, ours, paired, resamples, seed), strict=True):
                scores[reward][name].append(cell)
    if not any(name != "total" for part in scores.values() for name in part):
        raise ValueError("diff: the runs have no dimension in common")
    return Comparison(_labels(runs), paired, [len(found) for found in prompts], scores, _differences(runs))


def compare_page(
    runs: Sequence[Run],
    title: str,
    figures: Sequence[Path] = (),
    tables: Sequence[Table] = (),
    heading: str = "Scores",
) -> str:
    """One page without network: `tables`, `figures` (SVG or PNG files), the comparison under its `heading`,
    the same prompts by every run with a slider over them, and the settings that differ."""
    found = compare_runs(runs)
    galleries = {"samples": _gallery(runs)} if found.paired else {}
    return template("compare.html.jinja").render(
        title=title,
        heading=heading,
        found=found,
        tables=tables,
        charts=charts,
        figures={path.stem.replace("-", " "): data_uri(path) for path in figures},
        data=pack(galleries),
        **assets("page.css", "gallery.css", "dom.js", "card.js", "gallery.js"),
    )


def _labels(runs: Sequence[Run]) -> list[str]:
    """Names, or folders where two runs have the same name."""
    names = [run.config.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _rewards(runs: Sequence[Run]) -> list[str]:
    return ["judge", *(["oracle"] if all(run.artifacts.tuned_facts for run in runs) else [])]


def _table(run: Run, reward: str) -> ScoreTable:
    return read_scores(run.artifacts.tuned_scores if reward == "judge" else run.artifacts.tuned_facts)


def _prompt_means(run: Run, reward: str) -> tuple[list[str], dict[str, Tensor]]:
    """Names of the scores, and by prompt their means [K] over its samples; without prompts that have none."""
    table = _table(run, reward)
    names = ["total", *table.levels["dimension"][0]]
    values = torch.cat([table.levels["total"][1], table.levels["dimension"][1]], -1).nanmean(1)  # [P, K]
    found = zip(run.heldout_prompts, values, strict=True)
    return names, {prompt: row for prompt, row in found if not row.isnan().any()}


def _cells(
    first: Mapping[str, Tensor], ours: Mapping[str, Tensor], paired: bool, resamples: int, seed: int
) -> list[Cell]:
    both = [prompt for prompt in first if prompt in ours]
    mean = torch.stack(list(ours.values())).mean(0)
    if ours.keys() == first.keys() and all(torch.equal(ours[prompt], first[prompt]) for prompt in both):
        return [Cell(value, 0.0, (0.0, 0.0)) for value in mean.tolist()]
    if paired:
        difference = torch.stack([ours[prompt] - first[prompt] for prompt in both])
        delta, (low, high) = difference.mean(0), bootstrap_interval(difference, resamples, seed)
    else:
        theirs = torch.stack(list(first.values()))
        delta = mean - theirs.mean(0)
        low, high = _independent(torch.stack(list(ours.values())), theirs, resamples, seed)
    rows = zip(mean.tolist(), delta.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Cell(value, change, (least, most)) for value, change, least, most in rows]


def _independent(ours: Tensor, theirs: Tensor, resamples: int, seed: int) -> Tensor:
    """[2, K] the 2.5 and 97.5 % points of the difference of two independent means (Efron 1979)."""
    generator = torch.Generator().manual_seed(seed)

    def means(values: Tensor) -> Tensor:
        drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
        return torch.stack([values[row].mean(0) for row in drawn])

    return (means(ours) - means(theirs)).quantile(ours.new_tensor([0.025, 0.975]), dim=0)


def _differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    flat = []
    for run in runs:
        roles = {name: in_words(setting) for name, setting in run.config.objectives.dims.items()}
        written = as_written(run.config)
        del written["objectives"]["dims"]
        flat.append(_flat(written) | {f"objectives.dims.{name}": words for name, words in roles.items()})
    keys = dict.fromkeys(key for settings in flat for key in settings if key not in _PLACES)
    found = {key: [settings.get(key, "–") for settings in flat] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
        )
    return found


def _gallery(runs: Sequence[Run]) -> Gallery:
    """The first run's base model and every run's tuned one on the same prompts, by the judge."""
    made = runs[0].artifacts
    columns: list[tuple[Artifact, Artifact]] = [(made.base, made.base_scores)]
    columns += [(run.artifacts.tuned, run.artifacts.tuned_scores) for run in runs]
    parts = []
    for drawn, scored in columns:
        rows = read_table(*drawn.shards("candidates"))
        by_text = {(row["prompt"], row["candidate"]): (row["prompt_id"], row["candidate"]) for row in rows}
        table = read_scores(scored)
        parts.append((Samples(drawn, {"judge": table}), by_text, table))
    shared = [key for key in parts[0][1] if all(key in by_text for _, by_text, _ in parts)]

    def change(key: tuple[str, int]) -> float:
        first, *_, last = (total(table, by_text[key]) for _, by_text, table in parts)
        return last - first

    ranked = sorted((-change(key), key) for key in shared if not math.isnan(change(key)))
    return Gallery(
        steps=("base", *_labels(runs)),
        measure="total",
        slider=True,
        rewards=asked({"judge": parts[0][2]}),
        cards=spread_cards(
            ranked,
            lambda entry: Card(tuple(part[by_text[entry[1]]] for part, by_text, _ in parts), -entry[0]),
        ),
        of=len(ranked),
    )
