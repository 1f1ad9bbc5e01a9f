"""What an ablation found: a row for each run and score, means over seeds, and tests against the base arm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpo.ablate import Job
from mpo.ablation import Ablation, Arm
from mpo.evaluate import share_yes
from mpo.scores import read_scores
from mpo.significance import Estimate, holm, over_seeds, paired
from mpo.store import write_json, write_table

_ROW = {
    "arm": "string",
    "seed": "int64",
    "reward": "string",
    "level": "string",
    "score": "string",
    "base": "double",
    "tuned": "double",
    "change": "double",
    "ci_low": "double",
    "ci_high": "double",
    "win": "double",
    "tie": "double",
    "loss": "double",
    "pairs": "int64",
    "run": "string",
}


@dataclass(frozen=True)
class Result:
    """One arm in one score."""

    arm: str
    reward: str
    score: str
    change: Estimate  # tuned - original model, over seeds
    against: Estimate | None  # change - the base arm's, over seeds and prompts; None for the base arm itself
    p_holm: float | None  # over all arms in this score
    values: list[float]  # the change of each seed

    @property
    def key(self) -> tuple[str, str]:
        return self.reward, self.score


@dataclass(frozen=True)
class Results:
    ablation: Ablation
    arms: list[Arm]  # those with a complete run, the base arm first
    pairs: dict[str, float]  # arm -> pairs, mean over seeds
    seeds: dict[str, list[int]]  # arm -> those complete
    rows: list[dict[str, Any]]  # as in ablation.parquet
    found: list[Result]
    missing: int  # runs not complete

    def result(self, arm: str, key: tuple[str, str]) -> Result:
        return next(one for one in self.found if one.arm == arm and one.key == key)

    @property
    def scores(self) -> list[tuple[str, str]]:
        """(reward, score) in order: of each reward the share of right answers, the total, the dimensions."""
        return list(dict.fromkeys(one.key for one in self.found))


def base_run(ablation: Ablation, jobs: Sequence[Job]) -> Job | None:
    """The first complete run of the base arm, which others can be compared with; None where there is none."""
    base = ablation.arms()[0]
    done = (job for job in jobs if job.run.artifacts.evaluation.done)
    return next((job for job in done if job.member.arm == base), None)


def results(ablation: Ablation, jobs: Sequence[Job]) -> Results:
    """What the complete runs among `jobs` say. Raises ValueError where the base arm has no complete run."""
    done = [job for job in jobs if job.run.artifacts.evaluation.done]
    base = ablation.arms()[0]
    if base_run(ablation, jobs) is None:
        raise ValueError(f"{ablation.name}: the base arm {base.name} has no complete run yet to compare with")
    rows = [row for job in done for row in _rows(job)]
    by_run = {(job.member.arm.name, job.member.seed): changes(job) for job in done}
    prompts = {(job.member.arm.name, job.member.seed): job.run.heldout_prompts for job in done}
    arms = [arm for arm in ablation.arms() if any(job.member.arm == arm for job in done)]
    seeds = {arm.name: [s for s in ablation.seeds if (arm.name, s) in by_run] for arm in arms}
    compared = [row for row in rows if row["level"] != "subdimension"]
    keys = dict.fromkeys((row["reward"], row["score"]) for row in compared)
    found = []
    for key in keys:
        estimates, tests, values = [], [], []
        for arm in arms:
            means = [row["change"] for row in compared if _key(row) == (arm.name, *key)]
            values.append(means)
            estimates.append(over_seeds(means))
            common = [s for s in seeds[arm.name] if prompts.get((base.name, s)) == prompts[arm.name, s]]
            pairs = [(by_run[arm.name, s].get(key), by_run[base.name, s].get(key)) for s in common]
            known = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
            tests.append(paired(torch.stack(known)) if arm != base and known else None)
        adjusted = holm([test and test.p for test in tests])
        found += [
            Result(arm.name, *key, *entry)
            for arm, *entry in zip(arms, estimates, tests, adjusted, values, strict=True)
        ]
    counts = {arm.name: _mean([row["pairs"] for row in rows if row["arm"] == arm.name]) for arm in arms}
    return Results(ablation, arms, counts, seeds, rows, found, len(jobs) - len(done))


def write_results(found: Results, folder: Path, roles: Sequence[dict[str, Any]] = ()) -> list[Path]:
    """Write ablation.parquet (a row for each run and score) and ablation.json (means, tests, and `roles`)."""
    folder.mkdir(parents=True, exist_ok=True)
    axes = {f"axis.{name}": "string" for name in found.ablation.axes}
    table, summary = folder / "ablation.parquet", folder / "ablation.json"
    write_table(table, found.rows, axes | _ROW)
    content = {
        "name": found.ablation.name,
        "base_arm": found.arms[0].name,
        "missing_runs": found.missing,
        "arms": {
            arm.name: {"labels": arm.labels, "pairs": found.pairs[arm.name], "seeds": found.seeds[arm.name]}
            for arm in found.arms
        },
        "results": [asdict(one) for one in found.found],
        "roles": list(roles),
    }
    write_json(summary, content)
    return [table, summary]


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["arm"], row["reward"], row["score"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rows(job: Job) -> list[dict[str, Any]]:
    made, member = job.run.artifacts, job.member
    content = json.loads((made.evaluation.folder / "evaluation.json").read_text())
    common = {f"axis.{axis}": label for axis, label in member.arm.labels.items()}
    common |= {"arm": member.arm.name, "seed": member.seed, "run": str(job.run.folder)}
    common["pairs"] = made.pairs.facts()["pairs"]
    rows = []
    for reward, part in content.items():
        scores = {name: ("total", part[name]) for name in ("share_right", "total") if name in part}
        scores |= {name: ("dimension", found) for name, found in part["dimensions"].items()}
        scores |= {f"part:{name}": ("subdimension", found) for name, found in part["subdimensions"].items()}
        for name, (level, found) in scores.items():
            low, high = found["ci95"]
            numbers = {key: found[key] for key in ("base", "tuned", "win", "tie", "loss")}
            numbers |= {"change": found["delta"], "ci_low": low, "ci_high": high}
            rows.append(
                common | {"reward": reward, "level": level, "score": name.removeprefix("part:")} | numbers
            )
    return rows


def changes(job: Job) -> dict[tuple[str, str], Tensor]:
    """(reward, score) -> [P] tuned - original of each held-out prompt, mean over its samples."""
    made = job.run.artifacts
    found = {}
    for reward, before, after in (
        ("judge", made.base_scores, made.tuned_scores),
        ("oracle", made.base_facts, made.tuned_facts),
    ):
        if before is None or after is None:
            continue
        tables = read_scores(before), read_scores(after)
        for level in ("total", "dimension"):
            names = tables[0].levels[level][0]
            change = (tables[1].levels[level][1] - tables[0].levels[level][1]).nanmean(1)
            found |= {(reward, name): change[:, k] for k, name in enumerate(names)}
        if reward == "oracle":
            first, second = (share_yes(table) for table in tables)
            found[reward, "share_right"] = (second - first).nanmean(1)
    return found
