"""Commands that look at a choice of objectives before training, and compare many choices after it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpo.config import PAPER_SHARE, ConfigError, load

if TYPE_CHECKING:
    from mpo.ablate import Job
    from mpo.store import Artifact

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the file's.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("pairs")(pairs)
    app.command("ablate")(ablate)


def pairs(
    config: Annotated[Path, typer.Argument(help="YAML file of the run; its candidates must be scored.")],
    overrides: Overrides = None,
    margins: Annotated[
        str, typer.Option(help="Such as 0.1,0.2; default: half the run's, doubled again and again.")
    ] = "",
    counts: Annotated[str, typer.Option(help="Candidates a prompt, such as 2,4; default: powers of 2.")] = "",
    share: Annotated[
        float, typer.Option(help="Share of all pairs to look for; by default the paper's.")
    ] = PAPER_SHARE,
    to: Annotated[Path | None, typer.Option(help="Folder of the files; default: yield/ of the run.")] = None,
) -> None:
    """What pairs CONFIG would train on, and what other choices would give, from what is scored.

    \b
    mpo run configs/quickstart.yaml --until score
    mpo pairs configs/quickstart.yaml
    mpo pairs configs/quickstart.yaml objectives.dims.quality.role=hold pairs.tolerance=0.2
    mpo pairs configs/sdxl.yaml --margins 0.1,0.2,0.3 --counts 4,8 --share 0.2

    Shows the yield at every granularity, over margins and numbers of candidates, names what blocks, and says
    which setting gives the wanted share. Writes yield.csv, yield.json and yield.svg. Loads no model.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"--share {share}: must be above 0 and at most 1")
    asked = _numbers("--margins", margins, float, 0), _numbers("--counts", counts, int, 1)
    from mpo.artifacts import resolve

    run = resolve(load(config, overrides or ()), now=False)
    from mpo.survey import print_survey, survey, write_survey

    found = survey(run, *asked, share)
    print_survey(found)
    written = write_survey(found, to or run.folder / "yield")
    print("written: " + ", ".join(map(str, written)))


def ablate(
    ablation: Annotated[Path, typer.Argument(help="YAML file of the ablation; see configs/ablations/.")],
    overrides: Overrides = None,
    parallel: Annotated[int, typer.Option(help="Runs at once, each in its own process and GPU.")] = 1,
    shard: Annotated[str, typer.Option(help="i/n: part i of n, for machines with one disk.")] = "1/1",
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be run.")] = False,
    pareto: Annotated[
        str, typer.Option(help="Two scores for the Pareto plot, such as judge.quality,judge.alignment.")
    ] = "",
) -> None:
    """Run every arm of an ablation with every seed, and compare them with the base arm.

    \b
    mpo ablate configs/ablations/margin.yaml --plan
    mpo ablate configs/ablations/margin.yaml --parallel 2
    mpo ablate configs/ablations/margin.yaml seeds=[0] train.steps=50 folder=runs/quick name=quick
    mpo ablate configs/ablations/paper_cogvideox.yaml --shard 1/4 --parallel 8

    Arms share what they have in common, and what is there is not made again: start it again after it was
    killed, or to write the tables anew. Writes ablation.parquet, ablation.json, table.md, table.tex, plots
    and ablation.html into runs/NAME. Exit code 2 if a run failed; the others still run.
    """
    if parallel < 1:
        raise ConfigError(f"--parallel {parallel}: must be at least 1")
    if any(os.environ.get(name, "1") not in ("", "1") for name in ("MPO_PROCESSES", "WORLD_SIZE")):
        raise ConfigError("MPO_PROCESSES: not with ablate; --parallel N runs N arms at once")
    from mpo import ablate as runner
    from mpo.ablation import load_ablation, members
    from mpo.ablation import shard as part_of

    found = load_ablation(ablation, overrides or ())
    every = members(found)
    mine = part_of(every, shard)
    names = _two_scores(pareto)
    jobs = runner.jobs(mine, now=not plan)
    if not jobs:
        raise ConfigError(f"--shard {shard}: there are only {len(every)} runs")
    runner.print_plan(found, jobs, parallel)
    if plan:
        return
    from mpo.pipeline import check

    for job in jobs:  # one arm's mistake is found before the others sample for an hour
        if job.todo():
            check(job.run)
    failed = runner.run_all(jobs, parallel)
    from mpo.ablation_pages import show_results
    from mpo.scores import tell_unscored

    tell_unscored(_each_once(jobs))
    try:
        show_results(found, runner.jobs(every), names)
    except ValueError as error:
        if not failed:
            raise
        print(f"no tables: {error}")  # a run that failed is what the command ends with
    if failed:
        first = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(jobs)} runs failed, as {first[0]}: {first[1]}")


def _each_once(jobs: Sequence[Job]) -> list[tuple[str, Artifact]]:
    """(name, artifact) of all that the jobs make; what arms share stands under the first one's name."""
    made = {
        artifact.name: (f"{job.run.config.name}, {name}", artifact)
        for job in reversed(jobs)
        for name, artifact in job.run.artifacts.items()
    }
    return list(made.values())


def _two_scores(pareto: str) -> list[tuple[str, str]]:
    """The two (reward, score) of --pareto; none where it is not given."""
    names = [(reward, score) for reward, _, score in (text.partition(".") for text in pareto.split(","))]
    if pareto and (len(names) != 2 or not all(score for _, score in names)):
        raise ConfigError(f"--pareto {pareto}: must be two scores, such as judge.quality,judge.alignment")
    return names if pareto else []


def _numbers(option: str, text: str, kind: type, above: float) -> list:
    """The numbers of a comma-separated list, each greater than `above`."""
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = [above]
    if not all(number > above for number in found):
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option} {text}: must be {what} above {above}, with commas between")
    return found
