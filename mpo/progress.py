"""How a model changes while it is trained: the validation prompts by every step that was kept."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mpo.artifacts import Run, reached
from mpo.gallery import Card, Gallery, Samples, asked, spread_cards, total
from mpo.scores import read_scores
from mpo.store import Artifact

Validated = Mapping[int, tuple[Artifact, Artifact]]  # optimiser step -> samples of its weights, their scores


def validated(run: Run) -> Validated:
    """What the last round of a run has validated; empty where it validates nothing, or has not yet."""
    rounds = getattr(run.artifacts, "rounds", ())
    if not rounds or not rounds[-1].validated or not rounds[-1].training.done:
        return {}
    steps = {step: rounds[-1].validated[planned] for step, planned in reached(rounds[-1]).items()}
    return {step: pair for step, pair in steps.items() if all(part.done for part in pair)}


def step_gallery(steps: Validated) -> Gallery:
    """The same prompts and seeds at every step, where the judge could score all of them."""
    order = sorted(steps)
    tables = [read_scores(steps[step][1]) for step in order]
    columns = [Samples(steps[step][0], {"judge": table}) for step, table in zip(order, tables, strict=True)]
    changes = {}
    for key in columns[0].rows:
        totals = [total(table, key) for table in tables]
        if not any(map(math.isnan, totals)):
            changes[key] = totals[-1] - totals[0]
    ranked = sorted((-change, key) for key, change in changes.items())
    return Gallery(
        steps=tuple(f"step {step:,}" for step in order),
        measure="total",
        slider=True,
        rewards=asked({"judge": tables[0]}),
        cards=spread_cards(
            ranked, lambda entry: Card(tuple(column[entry[1]] for column in columns), -entry[0])
        ),
        of=len(ranked),
    )


def step_means(steps: Validated) -> dict[str, list[tuple[float, float]]]:
    """`total` and each dimension -> (step, mean over the samples that have a score)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for step in sorted(steps):
        levels = read_scores(steps[step][1]).levels
        for names, scores in (levels["total"], levels["dimension"]):
            for name, mean in zip(names, scores.flatten(0, 1).nanmean(0).tolist(), strict=True):
                if math.isfinite(mean):
                    found.setdefault(name, []).append((step, mean))
    return found
