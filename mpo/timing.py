"""How long stages took, noted in the store, and how long others will take by that. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

from mpo.artifacts import Run

TIMINGS = "timings.jsonl"  # in the store: a line for each artifact that one process made in one go
_RECENT = 20  # of each kind that count: machines and code change


def amount(run: Run, name: str) -> tuple[str, float]:
    """What kind of work the artifact `name` of `run` is, and how much of it: time goes by that."""
    config = run.config
    generator, train = config.generator, config.train
    shape = "x".join(str(side or "own") for side in (generator.height, generator.width, generator.frames))
    of = f"{generator.family} {generator.path} {shape}"
    trained, heldout = len(run.train_prompts), len(run.heldout_prompts) * config.evaluate.samples
    name = re.sub(r"^round_\d+_|_\d+", "", name)  # an earlier round, or the step that is validated
    given = config.pairs.source  # how many pairs it holds is not known here
    match name:
        case "candidates" if given:
            return f"encode {of} {given}", 1.0
        case "scores" if given:
            return f"score {config.reward.judge} {given}", 1.0
        case "candidates":
            return f"sample {of}", trained * config.generate.candidates * generator.steps
        case "base" | "tuned":
            return f"sample {of}", heldout * generator.steps
        case "scores":
            return f"score {config.reward.judge}", trained * config.generate.candidates
        case "base_scores" | "tuned_scores":
            return f"score {config.reward.judge}", heldout
        case "base_facts" | "tuned_facts":
            return f"score {config.evaluate.oracle}", heldout
        case "training":
            return f"train {of} {train.mode}", train.steps * train.batch_size
    return name, 1.0


def note(run: Run, name: str, seconds: float) -> None:
    """Remember what making the artifact took."""
    kind, size = amount(run, name)
    line = json.dumps({"kind": kind, "size": size, "seconds": round(seconds, 3)}) + "\n"
    path = Path(run.config.store) / TIMINGS
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())  # one write, so that lines of several processes stay whole
    finally:
        os.close(descriptor)


def rates(store: Path) -> dict[str, float]:
    """Kind -> seconds for a unit of it: the median of the latest."""
    path = store / TIMINGS
    found: dict[str, list[float]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        entry = json.loads(line)
        found.setdefault(entry["kind"], []).append(entry["seconds"] / entry["size"])
    return {kind: statistics.median(values[-_RECENT:]) for kind, values in found.items()}


def estimate(run: Run, names: Iterable[str], known: dict[str, float]) -> float | None:
    """Seconds that one process takes for the artifacts `names` of `run`; None where a kind is not known."""
    total = 0.0
    for name in names:
        kind, size = amount(run, name)
        if kind not in known:
            return None
        total += known[kind] * size
    return total
