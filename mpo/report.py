"""One page that shows a run: what changed, before and after, the pairs, their yield, the training curves.

The page is a single file: pictures are embedded, nothing is fetched.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from mpo import charts
from mpo.artifacts import Run
from mpo.config import to_yaml
from mpo.scores import ScoreTable, read_scores
from mpo.store import Artifact, read_table

CARDS = 24  # of the held-out samples, and of the pairs, that the page shows
_PIXELS = 256  # longer side of an embedded picture; larger ones are scaled down

CURVES = {
    "Loss": {"loss": "loss"},
    "Implicit reward": {"winner": "rewards/chosen", "loser": "rewards/rejected"},
    "Margin between them": {"margin": "rewards/margins"},
    "Pairs told apart": {"accuracy": "rewards/accuracies"},
    "Error above the reference's": {"winner": "errors/winner_excess", "loser": "errors/loser_excess"},
    "Gradient norm": {"norm": "grad_norm"},
}


@dataclass(frozen=True)
class Card:
    """Two pictures of one prompt, base (or loser) first, and both their scores by reward and dimension."""

    prompt: str
    pictures: tuple[Path, Path]
    scores: dict[str, dict[str, tuple[float, float]]]
    change: float  # of the judge's total, or the gap of the pair


@dataclass(frozen=True)
class Gallery:
    """Cards spread evenly over a ranking by change, greatest first, and how many there are to show."""

    cards: tuple[Card, ...]
    of: int


@dataclass(frozen=True)
class Report:
    """What the page shows."""

    name: str
    evaluation: dict[str, Any]  # evaluation.json
    heldout: Gallery
    pairs: Gallery
    prompts_with_pairs: int
    yields: dict[str, Any]  # yield.json
    chosen: tuple[str, float]  # the run's granularity and margin, to mark in the yield
    missing: dict[str, int]  # reason -> candidates without a score
    log: list[dict[str, float]]  # the Trainer's log_history
    settings: str  # resolved config as YAML


def render(run: Run) -> str:
    """The page of a run whose other stages are complete, as HTML."""
    return page(gather(run))


def page(report: Report) -> str:
    """The HTML of a report."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {name: getattr(charts, name) for name in ("fixed", "number", "signed")}
    environment.filters["picture"] = picture
    return environment.get_template("report.html.jinja").render(
        report=report, charts=charts, curves=_curves(report.log), ranges=_ranges(report)
    )


def gather(run: Run) -> Report:
    """Everything the page shows, from the run's artifacts."""
    made = run.artifacts
    pairs = read_table(made.pairs.folder / "pairs.parquet")
    scores = read_scores(made.scores)
    return Report(
        name=run.config.name,
        evaluation=json.loads((made.evaluation.folder / "evaluation.json").read_text()),
        heldout=_heldout(run),
        pairs=_pairs(made.candidates, scores, pairs),
        prompts_with_pairs=len({row["prompt_id"] for row in pairs}),
        yields=json.loads((made.pairs.folder / "yield.json").read_text()),
        chosen=(run.config.objectives.granularity, run.config.pairs.margin),
        missing=dict(Counter(reason for _, _, reason in scores.missing).most_common()),
        log=[json.loads(line) for line in (made.training.folder / "log.jsonl").read_text().splitlines()],
        settings=to_yaml(run.config),
    )


def spread(count: int, shown: int) -> list[int]:
    """At most `shown` ranks out of `count`, evenly spaced, the first and the last among them."""
    if count <= shown:
        return list(range(count))
    return [round(i * (count - 1) / (shown - 1)) for i in range(shown)]


def picture(path: Path) -> str:
    """A data URI: a small PNG as it is, anything else at most _PIXELS wide or high as JPEG."""
    with Image.open(path) as image:
        if image.format == "PNG" and max(image.size) <= _PIXELS // 2:
            kind, content = "png", path.read_bytes()
        else:
            image.thumbnail((_PIXELS, _PIXELS))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=85)
            kind, content = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _heldout(run: Run) -> Gallery:
    """Held-out samples of both models at the same seed, where both have the judge's scores."""
    made = run.artifacts
    rewards = {"judge": (read_scores(made.base_scores), read_scores(made.tuned_scores))}
    if made.base_facts and made.tuned_facts:
        rewards["oracle"] = (read_scores(made.base_facts), read_scores(made.tuned_facts))
    before, after = (_samples(artifact) for artifact in (made.base, made.tuned))
    base, tuned = (table.levels["total"][1][..., 0] for table in rewards["judge"])
    change = tuned - base
    ranked = sorted((-change[key].item(), key) for key in before if not change[key].isnan())
    return Gallery(
        cards=tuple(
            Card(
                prompt=before[key]["prompt"],
                pictures=(made.base.folder / before[key]["media"], made.tuned.folder / after[key]["media"]),
                scores={name: _dimensions(tables, key, key) for name, tables in rewards.items()},
                change=-fall,
            )
            for fall, key in (ranked[rank] for rank in spread(len(ranked), CARDS))
        ),
        of=len(ranked),
    )


def _pairs(candidates: Artifact, scores: ScoreTable, pairs: Sequence[dict[str, Any]]) -> Gallery:
    samples = _samples(candidates)
    ranked = sorted(pairs, key=lambda row: (-row["gap"], row["prompt_id"], row["winner"], row["loser"]))
    cards = []
    for row in (ranked[rank] for rank in spread(len(ranked), CARDS)):
        loser, winner = ((row["prompt_id"], row[side]) for side in ("loser", "winner"))
        cards.append(
            Card(
                prompt=samples[winner]["prompt"],
                pictures=(
                    candidates.folder / samples[loser]["media"],
                    candidates.folder / samples[winner]["media"],
                ),
                scores={"judge": _dimensions((scores, scores), loser, winner)},
                change=row["gap"],
            )
        )
    return Gallery(tuple(cards), len(pairs))


def _samples(artifact: Artifact) -> dict[tuple[int, int], dict[str, Any]]:
    rows = read_table(*artifact.shards("candidates"))
    return {(row["prompt_id"], row["candidate"]): row for row in rows}


def _dimensions(
    tables: tuple[ScoreTable, ScoreTable], before: tuple[int, int], after: tuple[int, int]
) -> dict[str, tuple[float, float]]:
    (names, first), (_, second) = (table.levels["dimension"] for table in tables)
    return dict(zip(names, zip(first[before].tolist(), second[after].tolist(), strict=True), strict=True))


def _curves(log: Sequence[dict[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """title -> name -> (step, value) points, of the curves that were logged; only finite values."""
    found = {}
    for title, series in CURVES.items():
        points = {
            name: [(row["step"], row[key]) for row in log if math.isfinite(row.get(key, math.nan))]
            for name, key in series.items()
        }
        if all(points.values()):
            found[title] = points
    return found


def _ranges(report: Report) -> dict[str, dict[str, tuple[float, float]]]:
    """reward -> dimension -> least and greatest score on any card, so that equal places mean equal scores."""
    found: dict[str, dict[str, list[float]]] = {}
    for card in (*report.heldout.cards, *report.pairs.cards):
        for reward, dimensions in card.scores.items():
            for name, values in dimensions.items():
                found.setdefault(reward, {}).setdefault(name, []).extend(values)
    return {
        reward: {name: (min(values), max(values)) for name, values in dimensions.items()}
        for reward, dimensions in found.items()
    }
