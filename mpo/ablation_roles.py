"""Whether an ablation's arms did what their objectives ask: improve some dimensions, hold others."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpo.ablate import Job
from mpo.ablation_results import Results, changes
from mpo.objectives import settings_by_name
from mpo.significance import Estimate, holm, paired

LEVEL = 0.05


@dataclass(frozen=True)
class Kept:
    """One dimension of one arm, by a reward that every run has: the oracle, or else the judge."""

    arm: str
    dimension: str
    role: str  # improve | hold
    reward: str
    change: Estimate  # tuned - original model, over seeds and prompts
    p: float | None  # of a rise in what is to improve by Holm over all rows of that role, else as it is

    @property
    def verdict(self) -> str:
        """rose | fell, where that is significant, and otherwise open."""
        if self.p is None or self.p >= LEVEL:
            return "open"
        return "rose" if self.change.mean > 0 else "fell"


def roles_kept(found: Results, jobs: Sequence[Job]) -> list[Kept]:
    """A row for each arm and dimension that it improves or holds, if any arm has a dimension that it does not
    improve; else none, since there is nothing to keep apart.

    A dimension of which a part has a role of its own counts as what it is itself. The correction makes a rise
    harder to claim; a fall is not corrected, so that it is not made easier to overlook.
    """
    done = [job for job in jobs if job.run.artifacts.evaluation.done]
    reward = found.scores[-1][0]
    names = [score for by, score in found.scores if by == reward and score not in ("total", "share_right")]
    rows = []
    for arm in found.arms:
        mine = [job for job in done if job.member.arm == arm]
        dims = mine[0].run.config.objectives.dims
        general = {entry: value for entry, value in dims.items() if fnmatch.filter(names, entry)}
        roles = [setting.role for setting in settings_by_name(names, general)]
        of_seeds = [changes(job) for job in mine if job.run.heldout_prompts == mine[0].run.heldout_prompts]
        for name, role in zip(names, roles, strict=True):
            change = paired(torch.stack([values[reward, name] for values in of_seeds]))
            rows.append((arm.name, name, role, change))
    if all(role == "improve" for _, _, role, _ in rows):
        return []
    tested = [change.p if role == "improve" else None for _, _, role, change in rows]
    adjusted = holm(tested)
    return [
        Kept(arm, name, role, reward, change, rose if role == "improve" and change.mean > 0 else change.p)
        for (arm, name, role, change), rose in zip(rows, adjusted, strict=True)
        if role != "ignore"
    ]
