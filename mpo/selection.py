"""Which of a training run's checkpoints is taken: scores of its validation samples, step by step. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mpo.config import ObjectivesConfig
from mpo.objectives import Objectives, at_granularity

Levels = Mapping[str, tuple[Any, Tensor]]  # level -> names, scores [P, N, K]


def validation_rows(by_step: Mapping[int, Levels], config: ObjectivesConfig, tolerance: float) -> list[dict]:
    """A row a step, as a line of the training log: `step`, `samples`, `validation/total` (of the objectives),
    `validation/DIMENSION` for every dimension, and in `fell` the held objectives that fell below their
    tolerance.

    All are means over the samples that have scores at every step, whose number is `samples`. Step 0 is the
    model as the round began. ValueError where no sample has.
    """
    found = {
        step: at_granularity(levels, config.granularity, config.dims, tolerance)
        for step, levels in by_step.items()
    }
    scored = torch.stack([objectives.valid for objectives in found.values()]).all(0)
    if not scored.any():
        raise ValueError("validate: no validation sample has scores at every step")
    first = _means(found[min(found)], scored)
    rows = []
    for step, objectives in found.items():
        change = _means(objectives, scored) - first
        held = zip(objectives.names, change, objectives.least, objectives.weights, strict=True)
        names, values = by_step[step]["dimension"]
        dimensions = dict(zip(names, values[scored].nanmean(0).tolist(), strict=True))
        rows.append(
            {
                "step": step,
                "samples": int(scored.sum()),
                "validation/total": objectives.total[scored].mean().item(),
                **{f"validation/{name}": mean for name, mean in dimensions.items()},
                "fell": [name for name, rise, least, weight in held if weight == 0 and rise < least],
            }
        )
    return rows


def best_step(rows: list[dict]) -> int:
    """The trained step of the highest total among those at which no held objective fell; if there is none,
    among all. The earliest of equals."""
    trained = [row for row in rows if row["step"] > 0]
    kept = [row for row in trained if not row["fell"]] or trained
    return max(kept, key=lambda row: (row["validation/total"], -row["step"]))["step"]


def _means(objectives: Objectives, scored: Tensor) -> Tensor:
    return objectives.values[scored].mean(0)
