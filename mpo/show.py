"""A run in tables: its stages, the yield of its pairs, and what training changed. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from mpo.artifacts import Run

if TYPE_CHECKING:
    from mpo.compare import Comparison

console = Console(soft_wrap=True)
_NO_MEASURE = ("device", "batch_size", "cache")  # settings of a reward on which no score depends
YIELD_COLUMNS = ("granularity", "margin", "pairs", "of all", "a prompt", "prompts without")


def stage_table(run: Run) -> None:
    """Print which artifacts of the run are there."""
    table = Table("artifact", "state", "folder", title=str(run.folder))
    for name, artifact in run.artifacts.items():
        begun = "begun" if artifact.folder.is_dir() else "to do"
        table.add_row(name.replace("_", " "), "there" if artifact.done else begun, str(artifact.folder))
    console.print(table)


def yield_cells(row: Mapping[str, Any]) -> list[str]:
    """What stands under `YIELD_COLUMNS` for a `mpo.yields.Yield`, given by its fields."""
    return [
        row["granularity"],
        f"{row['margin']:.3g}",
        f"{row['pairs']:,}",
        f"{row['share']:.0%}",
        f"{row['pairs_per_prompt']:.2f}",
        f"{row['prompts_without']:,}",
    ]


def yield_table(run: Run) -> None:
    """Print how many pairs each granularity and margin gives, and what blocks them, once pairing is done."""
    pairs = run.artifacts.pairs
    if not pairs.done:
        return
    content = json.loads((pairs.folder / "yield.json").read_text())
    table = Table(*YIELD_COLUMNS, Column("blocks most", overflow="fold"), title="yield")
    chosen = run.config.objectives.granularity
    for row in content["rows"]:
        most = sorted(row["blocks"].items(), key=lambda entry: -entry[1])[:2]
        blocks = ", ".join(f"{name} {share:.0%}" for name, share in most if share > 0)
        ours = row["granularity"] == chosen and abs(row["margin"] - run.config.pairs.margin) < 1e-12
        table.add_row(*yield_cells(row), blocks, style="bold" if ours else None)
    console.print(table)
    for entry in content["agreement"]:
        if entry["granularity"] == "dimension" and len(entry["names"]) > 1:
            console.print(_agreement(entry))
    facts = pairs.facts()
    missing = f", {content['missing']:,} candidates without a score" if content["missing"] else ""
    console.print(
        f"kept {facts['pairs']:,} pairs of {facts['prompts']:,} of {content['prompts']:,} prompts{missing}"
    )


def _agreement(entry: Mapping[str, Any]) -> Table:
    """How far dimensions agree: their correlations over the candidates of a prompt, each once."""
    names, correlation = entry["names"], entry["correlation"]
    table = Table("agreement", *names[:-1], title="correlation within prompts")
    for i, name in enumerate(names[1:], 1):
        table.add_row(name, *("-" if r is None else f"{r:+.2f}" for r in correlation[i][:i]))
    return table


def validation_table(run: Run) -> None:
    """Print what the validated checkpoints scored, and which of them was taken, of every round so far."""
    for number, part in enumerate(run.artifacts.rounds, 1):
        if part.selection is None or not part.selection.done:
            continue
        lines = (part.selection.folder / "validation.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        names = [key for key in rows[0] if key.startswith("validation/")]
        round_ = f", round {number}" if len(run.artifacts.rounds) > 1 else ""
        table = Table(
            "step",
            *(name.removeprefix("validation/").replace("_", " ") for name in names),
            "fell",
            title=f"{rows[0]['samples']:,} validation samples{round_}",
        )
        for row in rows:
            best = row["step"] == part.selection.facts()["step"]
            cells = [f"{row[name]:.3f}" for name in names]
            table.add_row(str(row["step"]), *cells, ", ".join(row["fell"]), style="bold" if best else None)
        console.print(table)
        console.print(f"step {part.selection.facts()['step']} is taken")


def evaluation_table(run: Run) -> None:
    """Print base against tuned on the held-out prompts, and where the report lies, once evaluated."""
    if not run.artifacts.evaluation.done:
        return
    content = json.loads((run.artifacts.evaluation.folder / "evaluation.json").read_text())
    table = Table(
        "score", "base", "tuned", "change", "95 % interval", "win", "tie", "loss", title="held-out prompts"
    )
    for reward, found in content.items():
        rows = {key: found[key] for key in ("share_right", "total") if key in found} | found["dimensions"]
        for number, (name, row) in enumerate(rows.items(), 1):
            fell = name in found["regressions"]
            label = f"{reward} {name.replace('_', ' ')}"
            table.add_row(label, *_cells(row), style="red" if fell else None, end_section=number == len(rows))
    console.print(table)
    for reward, found in content.items():
        joint = found["joint"]
        fell = ", ".join(found["regressions"]) or "none"
        console.print(
            f"{reward}: tuned dominates base in {joint['domination']:.0%} and is dominated by it in "
            f"{joint['collapse']:.0%} of {found['prompts']:,} prompts; significantly fallen: {fell}"
        )
    if run.artifacts.report.done:
        console.print(f"report: {run.folder / 'report.html'}")


def comparison_table(found: Comparison) -> None:
    """Print runs side by side by score: the mean of each, and how far it is from the first run's."""
    how = "paired by prompt" if found.paired else "other prompts, so not paired"
    table = Table("score", *found.names, title=f"held-out prompts, {how}")
    for reward, rows in found.scores.items():
        for number, (name, cells) in enumerate(rows.items(), 1):
            texts = [f"{cells[0].mean:.3f}"]
            for cell in cells[1:]:
                mark = " *" if cell.clear else ""
                low, high = cell.ci95
                texts.append(f"{cell.mean:.3f} ({cell.delta:+.3f}, {low:+.3f} .. {high:+.3f}){mark}")
            table.add_row(f"{reward} {name}", *texts, end_section=number == len(rows))
    console.print(table)
    console.print(f"in brackets: from {found.names[0]}, with a 95 % interval; * where it does not hold zero")
    if unlike := [key for key in found.settings if _measures(key)]:
        console.print(f"scored differently ({', '.join(unlike)}): these numbers are not of one measure")
    for key, values in found.settings.items():
        console.print(f"{key}: {' | '.join(map(str, values))}", markup=False)


def _measures(setting: str) -> bool:
    section, _, name = setting.partition(".")
    return section == "reward" and name not in _NO_MEASURE


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["ci95"]
    numbers = [
        f"{row['base']:.3f}",
        f"{row['tuned']:.3f}",
        f"{row['delta']:+.3f}",
        f"{low:+.3f} .. {high:+.3f}",
    ]
    return numbers + [f"{row[key]:.0%}" if key in row else "" for key in ("win", "tie", "loss")]
