"""What learning and measuring a reward prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rewards.benchmark import BenchmarkReport
    from rewards.judge_metrics import JudgeReport
    from rewards.weights import Estimate, WeightReport

console = Console(soft_wrap=True, markup=False)  # questions hold [[prompt]]


def weight_tables(report: WeightReport) -> None:
    """Print weights, solvers, path and learning curve of a fit."""
    table = Table("column", "weight", "95 % interval", "zero in", "why zero", title=_title(report))
    for name, weight, share in zip(report.questions, report.weights, report.zero_share, strict=True):
        note = report.zeroed.get(name, "")
        if name in report.same_answers:
            note = f"same answers as {report.same_answers[name]}; only their sum is determined"
        table.add_row(name, f"{weight.value:.3f}", _interval(weight, 3), f"{share:.0%}", note)
    _print(table)
    table = Table("solver", "loss", "questions", "accuracy", "95 % interval", title="cross-validated")
    for name, result in report.solvers.items():
        cells = _percent(result.accuracy)
        table.add_row(name, f"{result.objective:.5f}", str(result.questions), *cells)
    _print(table)
    console.print(f"largest difference of a weight between the solvers: {report.solver_gap:.2g}")
    table = Table("L1", "questions", "accuracy", "95 % interval", title="regularisation path")
    for point in report.path:
        table.add_row(f"{point.l1:.4g}", str(point.questions), *_percent(point.accuracy))
    _print(table)
    table = Table("pairs", "accuracy", "95 % interval", "spread", title="learning curve, held out")
    for point in report.curve:
        table.add_row(f"{point.pairs:,}", *_percent(point.accuracy), f"{100 * point.spread:.1f}")
    _print(table)


def agreement_table(report: BenchmarkReport) -> None:
    """Print tau and diff of every reward, in total and by dimension, and how the rewards compare."""
    left_out = f", {report.left_out:,} left out" if report.left_out else ""
    title = f"{report.pairs:,} pairs, {report.ties:,} ties{left_out}"
    table = Table(
        "reward", "score", "tau", "95 % interval", "threshold", "diff", "95 % interval", title=title
    )
    for reward, columns in report.agreement.items():
        for number, (name, found) in enumerate(columns.items(), 1):
            cells = *_percent(found.tau), f"{found.threshold:.3g}", *_percent(found.diff)
            table.add_row(reward, name, *cells, end_section=number == len(columns))
    _print(table)
    for pair in report.comparisons:
        console.print(
            f"{pair.reward} against {pair.other}: tau {_change(pair.tau)}, diff {_change(pair.diff)} points"
        )
    for note in report.notes:
        console.print(f"note: {note}")


def judge_table(report: JudgeReport) -> None:
    """Print how a judge agrees with people, question by question."""
    table = Table("question", "answers", "accuracy", "balanced", "majority", "calibration error", "said yes")
    for text, found in [*report.questions.items(), ("all", report.overall)]:
        balanced = "" if found.balanced is None else f"{100 * found.balanced:.1f}"
        shares = f"{100 * found.accuracy:.1f}", balanced, f"{100 * found.majority:.1f}"
        table.add_row(
            text, f"{found.answers:,}", *shares, f"{found.calibration:.3f}", f"{found.said_yes:.0%}"
        )
    _print(table)
    missing = f", {report.missing} items without an answer" if report.missing else ""
    console.print(f"balanced accuracy over questions: {100 * report.balanced:.1f}{missing}")


def _print(table: Table) -> None:
    """In a file or a pipe as wide as it is: 80 columns would cut names and questions short."""
    shown = console if console.is_terminal else Console(width=200, markup=False)
    shown.print(table)


def _title(report: WeightReport) -> str:
    return f"weights by {report.solver} from {report.pairs:,} pairs of {report.groups:,} prompts"


def _interval(estimate: Estimate, digits: int) -> str:
    return f"{estimate.low:.{digits}f} … {estimate.high:.{digits}f}"


def _percent(estimate: Estimate) -> tuple[str, str]:
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:.1f}", f"{low:.1f} … {high:.1f}"


def _change(estimate: Estimate) -> str:
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:+.1f} ({low:+.1f} … {high:+.1f})"
