"""Base against tuned model on the held-out prompts, by the reward and, where there is one, by the oracle."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mpo.artifacts import Run
from mpo.scores import ScoreTable, read_scores
from mpo.statistics import compare
from mpo.store import Artifact


def evaluation(run: Run) -> dict[str, Any]:
    """What evaluation.json holds: `judge`, and `oracle` where there is one, each as `compare` says.

    The oracle's questions are about facts, so its part also has `share_right`: the share answered yes.
    """
    made = run.artifacts
    found = {"judge": _compared(run, made.base_scores, made.tuned_scores)}
    if made.base_facts and made.tuned_facts:
        found["oracle"] = _compared(run, made.base_facts, made.tuned_facts, share="share_right")
    return found


def _compared(run: Run, base: Artifact, tuned: Artifact, share: str | None = None) -> dict[str, Any]:
    before, after = read_scores(base), read_scores(tuned)
    shares = {share: (share_yes(before), share_yes(after))} if share else None
    return compare(before.levels, after.levels, run.config.evaluate.bootstrap, run.config.seed, shares)


def share_yes(table: ScoreTable) -> Tensor:
    """[P, S] the share of a sample's questions answered yes; NaN where it is missing."""
    return (table.p_yes > 0.5).double().masked_fill(table.p_yes.isnan(), float("nan")).mean(-1)
