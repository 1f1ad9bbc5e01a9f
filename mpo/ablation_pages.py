"""Writes and prints what an ablation found: the table of all runs, the tests, and the plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from mpo.ablate import Job
from mpo.ablation import Ablation
from mpo.ablation_results import Results, base_run, results, write_results
from mpo.ablation_roles import roles_kept
from mpo.ablation_tables import Table, latex, markdown, tables
from mpo.compare import compare_page
from mpo.plots import axis_figure, pareto_figure, save_figure
from mpo.store import write_bytes

console = Console(soft_wrap=True)


def show_results(ablation: Ablation, jobs: Sequence[Job], pareto: Sequence[tuple[str, str]] = ()) -> None:
    """Print the tables of the complete runs among `jobs`, and write everything into the ablation's folder;
    one line and nothing else while the base arm has no complete run.

    `pareto`: two (reward, score); by default the first two dimensions of the last reward. Raises ValueError
    for a score that there is not.
    """
    if base_run(ablation, jobs) is None:
        base = ablation.arms()[0].name
        print(f"no tables yet: the base arm {base} has no complete run; whatever ends after it writes them")
        return
    found = results(ablation, jobs)
    axes = _pareto_scores(found, pareto)
    folder = Path(ablation.folder)
    kept = roles_kept(found, jobs)
    written = write_results(found, folder, [asdict(one) | {"verdict": one.verdict} for one in kept])
    for name, text in (("table.md", markdown(found, kept)), ("table.tex", latex(found, kept))):
        write_bytes(folder / name, text.encode())
        written.append(folder / name)
    for axis in ablation.axes:
        written.append(folder / f"axis-{axis}.svg")
        save_figure(axis_figure(found, axis), written[-1])
    if axes:
        written.append(folder / f"pareto-{'-'.join(score for _, score in axes)}.svg")
        save_figure(pareto_figure(found, *axes), written[-1])
    text = markdown(found, kept)
    wide = max(map(len, text.splitlines()))  # a terminal may wrap a line, but no number is cut off
    Console(width=max(console.width, wide), soft_wrap=True).print(Markdown(text))
    try:
        figures = [path for path in written if path.suffix == ".svg"]
        written.append(_page(ablation, jobs, figures, tables(found, kept)))
    except ValueError as error:  # a single arm, or arms whose checklists have no dimension in common
        console.print(f"no ablation.html: {error}", markup=False)
    print("written: " + ", ".join(map(str, written)))


def _page(
    ablation: Ablation, jobs: Sequence[Job], figures: Sequence[Path], over_seeds: Sequence[Table]
) -> Path:
    """Write ablation.html: the tables over all seeds, and side by side the arms complete at the first
    seed at which the base arm is.

    Raises ValueError for runs that cannot be compared.
    """
    done = [job for job in jobs if job.run.artifacts.evaluation.done]
    seed = base_run(ablation, jobs).member.seed
    runs = {job.member.arm.name: job.run for job in done if job.member.seed == seed}
    ordered = [runs[arm.name] for arm in ablation.arms() if arm.name in runs]
    path = Path(ablation.folder) / "ablation.html"
    write_bytes(path, compare_page(ordered, ablation.name, figures, over_seeds, f"At seed {seed}").encode())
    return path


def _pareto_scores(found: Results, asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    for key in asked:
        if key not in found.scores:
            names = ", ".join(".".join(score) for score in found.scores)
            raise ValueError(f"--pareto: there is no score {'.'.join(key)}; there are {names}")
    if asked:
        return list(asked)
    reward = found.scores[-1][0]
    own = [key for key in found.scores if key[0] == reward and key[1] not in ("total", "share_right")]
    return own[:2] if len(own) > 1 else []
