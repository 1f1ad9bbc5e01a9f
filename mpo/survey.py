"""What `mpo pairs` shows: the pairs that a run could have, by every choice, over what is scored."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from mpo.artifacts import Run
from mpo.config import GRANULARITIES, PAPER_SHARE, RULES, RunConfig
from mpo.objectives import at_granularity, general_slack
from mpo.plots import save_figure, yield_figure
from mpo.scores import Levels, first_candidates, read_scores
from mpo.show import YIELD_COLUMNS, console, yield_cells
from mpo.store import write_bytes, write_json
from mpo.yields import Reach, RuleYield, Yield, YieldReport, reach, rule_yields, yield_report


@dataclass(frozen=True)
class Survey:
    """What `mpo pairs` shows of one run."""

    config: RunConfig
    report: YieldReport
    wanted: float  # the share of all pairs that is looked for
    reaches: tuple[Reach, ...]  # what gives it, by granularity
    rules: tuple[RuleYield, ...]  # at the run's granularity and margin
    to_score: int  # prompts that have no scores yet

    def row(self, granularity: str, candidates: int | None = None) -> Yield:
        """The yield at the run's margin; of all candidates if not told otherwise."""
        count = candidates or self.report.candidates
        return next(
            row
            for row in self.report.rows
            if (row.granularity, row.margin, row.candidates) == (granularity, self.config.pairs.margin, count)
        )


def survey(run: Run, margins: Sequence[float], counts: Sequence[int], wanted: float) -> Survey:
    """Look at the scores of `run`, as many as there are. Without `margins` or `counts` the usual ones.

    Raises FileNotFoundError where nothing is scored, and ValueError as `at_granularity` does.
    """
    config, scores = run.config, run.artifacts.scores
    if config.pairs.source:
        raise ValueError(f"pairs.from = {config.pairs.source!r}: its pairs are given, none are to be chosen")
    shards = [int(path.stem.rpartition("-")[2]) for path in scores.shards("scores")]
    if not shards:
        raise FileNotFoundError(
            f"{config.name}: nothing is scored yet; first `mpo run CONFIG --until score`, with these settings"
        )
    size, prompts = config.generate.shard_size, len(run.train_prompts)
    there = [i for shard in shards for i in range(shard * size, min((shard + 1) * size, prompts))]
    levels: Levels = {
        level: (names, table[torch.tensor(there)])
        for level, (names, table) in first_candidates(
            read_scores(scores).levels, config.pairs.candidates
        ).items()
    }
    dims, tolerance, own = config.objectives.dims, config.pairs.tolerance, config.pairs.margin
    found = {name: at_granularity(levels, name, dims, tolerance) for name in GRANULARITIES}
    stored = levels["total"][1].shape[1]
    if any(count > stored for count in counts):
        raise ValueError(f"--counts {max(counts)}: only {stored} candidates of a prompt are scored")
    report = yield_report(
        found,
        sorted({own, *(margins or _usual_margins(own, float(found["total"].spread)))}),
        counts or [count for count in (2, 4, 8, 16, 32) if count < stored],
        config.seed,
    )
    reaches = [
        reach(level, name, wanted, own, general_slack(level.names, dims)) for name, level in found.items()
    ]
    rules = rule_yields(found[config.objectives.granularity], RULES, own, config.seed)
    return Survey(config, report, wanted, tuple(reaches), tuple(rules), prompts - len(there))


def _usual_margins(own: float, widest: float) -> list[float]:
    """Half the run's margin, and on by doubling to the widest difference, at most nine of them."""
    doubled = [own * 2**power for power in range(-1, 8)]
    return [margin for margin in doubled if margin <= max(widest, own)]


def write_survey(found: Survey, folder: Path) -> list[Path]:
    """Write yield.csv (a row for each setting), yield.json and yield.svg into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["granularity", "margin", "candidates", "pairs", "share", "pairs_per_prompt", "prompts_without"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "blocks_most", "its_share"])
    for row in found.report.rows:
        name, share = max(row.blocks.items(), key=lambda entry: entry[1])
        writer.writerow([*(getattr(row, column) for column in columns), name if share else "", share])
    paths = [folder / f"yield.{kind}" for kind in ("csv", "json", "svg")]
    write_bytes(paths[0], text.getvalue().encode())
    write_json(paths[1], found.report.to_dict())
    save_figure(yield_figure(found), paths[2])
    return paths


def print_survey(found: Survey) -> None:
    """Print the tables and what they say."""
    console.print(_margin_table(found))
    console.print(_count_table(found))
    console.print(_block_table(found))
    console.print(_rule_table(found))
    report = found.report
    if found.to_score:
        console.print(f"{found.to_score:,} prompts have no scores yet and are not counted")
    if report.missing:
        console.print(f"{report.missing:,} candidates have no score and are in no pair")
    size = report.candidates * (report.candidates - 1) / 2
    console.print(
        f"{found.wanted:.0%} of all pairs would be {found.wanted * size:.1f} a prompt of {size:.0f}; "
        f"the paper kept {100 * PAPER_SHARE:.0f} % with 8 candidates. Here"
    )
    for one in found.reaches:
        console.print(f"  {one.granularity}: {_reach_line(one, found.config.pairs.margin)}")


def _reach_line(one: Reach, margin: float) -> str:
    if one.margin is not None:
        return f"{one.share:.0%} at pairs.margin={one.margin:.3g}"
    least = f"no margin does, the least gives {one.share:.0%}"
    if one.tolerance is not None:
        tolerant = f"pairs.tolerance={one.tolerance:.3g} gives {one.share_tolerant:.0%}"
        return f"{least}; at pairs.margin={margin:g}, {tolerant}"
    return f"{least}; no tolerance does at pairs.margin={margin:g}, the most is {one.share_tolerant:.0%}"


def _margin_table(found: Survey) -> Table:
    report = found.report
    title = f"{found.config.name}: pairs of {report.prompts:,} prompts with {report.candidates} candidates"
    table = Table(*YIELD_COLUMNS, title=title)
    rows = [row for row in report.rows if row.candidates == report.candidates]
    for number, row in enumerate(rows, 1):
        ours = (row.granularity, row.margin) == (
            found.config.objectives.granularity,
            found.config.pairs.margin,
        )
        table.add_row(
            *yield_cells(vars(row)),
            style="bold" if ours else None,
            end_section=number < len(rows) and rows[number].granularity != row.granularity,
        )
    return table


def _count_table(found: Survey) -> Table:
    """Pairs a prompt, and prompts without any, by number of candidates."""
    counts = sorted({row.candidates for row in found.report.rows})
    title = f"pairs a prompt (prompts without), margin {found.config.pairs.margin:g}"
    table = Table("candidates", *GRANULARITIES, title=title)
    for count in counts:
        rows = [found.row(name, count) for name in GRANULARITIES]
        table.add_row(str(count), *(f"{row.pairs_per_prompt:.2f} ({row.prompts_without:,})" for row in rows))
    return table


def _block_table(found: Survey) -> Table:
    """What stops the pairs whose total differs by the margin."""
    table = Table(
        "granularity", "objective", "stops", "alone", title="what blocks pairs that are wide enough"
    )
    for name in GRANULARITIES:
        row = found.row(name)
        worst = sorted(row.blocks.items(), key=lambda entry: -entry[1])[:5]
        for objective, share in worst:
            if share > 0:
                table.add_row(name, objective, f"{share:.0%}", f"{row.blocks_alone[objective]:.0%}")
        table.add_section()
    return table


def _rule_table(found: Survey) -> Table:
    objectives, margin = found.config.objectives.granularity, found.config.pairs.margin
    table = Table(
        "rule",
        "pairs",
        "of all",
        "also by dominance",
        "worse in total",
        title=f"rules at {objectives}, margin {margin:g}",
    )
    for row in found.rules:
        table.add_row(
            row.rule, f"{row.pairs:,}", f"{row.share:.0%}", f"{row.dominating:.0%}", f"{row.against:.0%}"
        )
    return table
