"""One page that shows a run: what changed, before and after, the pairs, their yield, the training curves.

The page is a single file: pictures, clips, styles and scripts are embedded, nothing is fetched.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mpo import charts
from mpo.artifacts import Run
from mpo.config import RunConfig, to_yaml
from mpo.gallery import Card, Gallery, Samples, asked, pack, spread_cards, total
from mpo.progress import Validated, step_gallery, step_means, validated
from mpo.scores import ScoreTable, read_scores
from mpo.store import Artifact, read_table

PAGES = Path(__file__).parent / "pages"

CURVES = {
    "Loss": {"loss": "loss"},
    "Implicit reward": {"winner": "rewards/chosen", "loser": "rewards/rejected"},
    "Margin between them": {"margin": "rewards/margins"},
    "Pairs told apart": {"accuracy": "rewards/accuracies"},
    "Error above the reference's": {"winner": "errors/winner_excess", "loser": "errors/loser_excess"},
    "The winner's, in the running mean": {"winner": "errors/winner_excess_running"},
    "Denoising error": {"winner": "errors/winner", "loser": "errors/loser"},
    "Gradient norm": {"norm": "grad_norm"},
    "Learning rate": {"rate": "learning_rate"},
    "Beta per element": {"beta": "beta_per_element"},
}


@dataclass(frozen=True)
class Report:
    """What the page shows."""

    name: str
    facts: list[str]  # what the run is, in a few words each
    evaluation: dict[str, Any]  # evaluation.json
    galleries: dict[str, Gallery]  # heldout, pairs
    prompts_with_pairs: int
    yields: dict[str, Any]  # yield.json
    chosen: tuple[str, float]  # the run's granularity and margin, to mark in the yield
    missing: dict[str, int]  # reason -> candidates without a score
    log: list[dict[str, float]]  # the Trainer's log_history
    validation: dict[str, dict[str, list[tuple[float, float]]]]  # title -> curves on the validation prompts
    settings: str  # resolved config as YAML


def render(run: Run) -> str:
    """The page of a run whose other stages are complete, as HTML."""
    return page(gather(run))


def page(report: Report) -> str:
    """The HTML of a report."""
    return template("report.html.jinja").render(
        report=report,
        charts=charts,
        curves=curves(report.log) | report.validation,
        data=pack(report.galleries),
        **assets("page.css", "gallery.css", "dom.js", "card.js", "gallery.js"),
    )


def template(name: str) -> Any:
    """A template of `pages/`, with the filters that they use."""
    environment = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    filters = ("breakable", "fixed", "number", "signed")
    environment.filters |= {name: getattr(charts, name) for name in filters}
    return environment.get_template(name)


def assets(*names: str) -> dict[str, Markup]:
    """`style` and `script`: the contents of files of `pages/`, to stand in a page as they are."""
    content = {
        kind: [(PAGES / name).read_text() for name in names if name.endswith(kind)] for kind in ("css", "js")
    }
    return {"style": Markup("\n".join(content["css"])), "script": Markup("\n".join(content["js"]))}


def gather(run: Run) -> Report:
    """Everything the page shows, from the run's artifacts."""
    made = run.artifacts
    pairs = read_table(made.pairs.folder / "pairs.parquet")
    scores = read_scores(made.scores)
    steps = validated(run)
    galleries = {"heldout": heldout(run), "pairs": _pairs(made.candidates, scores, pairs)}
    if steps:
        galleries["validation"] = step_gallery(steps)
    means = step_means(steps)
    return Report(
        name=run.config.name,
        facts=facts(run.config),
        evaluation=json.loads((made.evaluation.folder / "evaluation.json").read_text()),
        galleries=galleries,
        prompts_with_pairs=len({row["prompt_id"] for row in pairs}),
        yields=json.loads((made.pairs.folder / "yield.json").read_text()),
        chosen=(run.config.objectives.granularity, run.config.pairs.margin),
        missing=dict(Counter(reason for _, _, reason in scores.missing).most_common()),
        log=read_log(made.training),
        validation={f"Validation: {name}": {name: points} for name, points in means.items()},
        settings=to_yaml(run.config),
    )


def facts(config: RunConfig) -> list[str]:
    """What a run is, in a few words each: generator, reward, pairs, training."""
    train, pairs = config.train, config.pairs
    beta = train.beta if isinstance(train.beta, str) else f"{train.beta:g}"
    how = f"LoRA of rank {train.lora.rank}" if train.mode == "lora" else "all weights"
    chosen = f"pairs by {pairs.rule} at {config.objectives.granularity} level, margin {pairs.margin:g}"
    return [
        f"{config.generator.family} {config.generator.path}",
        f"judged by {config.reward.judge}",
        f"pairs of {pairs.source}" if pairs.source else chosen,
        *([f"{config.rounds} rounds"] if config.rounds > 1 else []),
        f"{how}, β {beta}, {train.steps} steps of {train.batch_size} pairs, seed {config.seed}",
    ]


def read_log(training: Artifact) -> list[dict[str, float]]:
    """The Trainer's log_history of a finished training."""
    return [json.loads(line) for line in (training.folder / "log.jsonl").read_text().splitlines()]


def curves_csv(training: Artifact, steps: Validated) -> str:
    """The Trainer's log and the validation as CSV: a row for each step, a column for everything there is."""
    rows: dict[float, dict[str, float]] = {}
    for entry in read_log(training):
        rows.setdefault(entry["step"], {}).update(entry)
    for name, points in step_means(steps).items():
        for step, mean in points:
            rows.setdefault(step, {"step": step})[f"validation/{name}"] = mean
    columns = ["step", *sorted({key for row in rows.values() for key in row} - {"step"})]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows[step] for step in sorted(rows))
    return text.getvalue()


def heldout(run: Run) -> Gallery:
    """Held-out samples of both models at the same seed, where both have the judge's scores."""
    made = run.artifacts
    before = {"judge": read_scores(made.base_scores)}
    after = {"judge": read_scores(made.tuned_scores)}
    if made.base_facts and made.tuned_facts:
        before["oracle"], after["oracle"] = read_scores(made.base_facts), read_scores(made.tuned_facts)
    base, tuned = Samples(made.base, before), Samples(made.tuned, after)
    changes = {key: total(after["judge"], key) - total(before["judge"], key) for key in base.rows}
    ranked = sorted((-change, key) for key, change in changes.items() if not math.isnan(change))
    return Gallery(
        steps=("base", "tuned"),
        measure="total",
        slider=True,
        rewards=asked(before),
        cards=spread_cards(ranked, lambda entry: Card((base[entry[1]], tuned[entry[1]]), -entry[0])),
        of=len(ranked),
    )


def _pairs(candidates: Artifact, scores: ScoreTable, pairs: Sequence[dict[str, Any]]) -> Gallery:
    """The kept pairs, loser first."""
    stored = Samples(candidates, {"judge": scores})
    ranked = sorted(pairs, key=lambda row: (-row["gap"], row["prompt_id"], row["winner"], row["loser"]))

    def card(row: Mapping[str, Any]) -> Card:
        return Card(tuple(stored[row["prompt_id"], row[side]] for side in ("loser", "winner")), row["gap"])

    return Gallery(
        steps=("loser", "winner"),
        measure="gap",
        slider=False,
        rewards=asked({"judge": scores}),
        cards=spread_cards(ranked, card),
        of=len(ranked),
    )


def curves(log: Iterable[Mapping[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """title -> name -> (step, value) points, of the curves that were logged; only finite values."""
    log = list(log)
    found = {}
    for title, series in CURVES.items():
        points = {
            name: [(row["step"], row[key]) for row in log if math.isfinite(row.get(key, math.nan))]
            for name, key in series.items()
        }
        if all(points.values()):
            found[title] = points
    return found
