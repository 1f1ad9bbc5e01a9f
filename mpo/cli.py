"""The commands. Everything heavy is imported where it is used, so that help and refusals answer at once."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpo import cli_control, cli_learn, cli_release, cli_rewards
from mpo.cli_rewards import UNSCORED
from mpo.config import STAGES, ConfigError, RunConfig, load
from mpo.store import locked

if TYPE_CHECKING:
    from mpo.artifacts import Run

FELL = 3  # exit code when evaluate.fail_on_regression is set and a dimension fell

app = typer.Typer(
    help="Multi-objective preference optimisation of image and video generators.\n\n"
    "A run samples candidates, scores every dimension with VisionReward, keeps the pairs in which one "
    "candidate dominates another, trains with Diffusion-DPO, and evaluates on held-out prompts:\n\n"
    "    mpo plan configs/quickstart.yaml\n\n"
    "    mpo run configs/quickstart.yaml train.beta=500\n\n"
    "    mpo show runs/quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
quickstart = typer.Typer(
    help="The bundled world that configs/quickstart.yaml runs on.\n\n    mpo quickstart build",
    no_args_is_help=True,
)
app.add_typer(quickstart, name="quickstart")
checklist = typer.Typer(
    help="The questions of a reward: bring, show, write and check them.\n\n"
    "    mpo checklist new mine.yaml\n\n"
    "    mpo checklist fetch visionreward-video\n\n"
    "    mpo checklist show configs/checklists/quickstart.yaml",
    no_args_is_help=True,
)
app.add_typer(checklist, name="checklist")

Config = Annotated[Path, typer.Argument(help="YAML file of the run, such as configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the file's.")
]


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    until: Annotated[
        str, typer.Option(metavar="STAGE", help=f"Stop after it: {', '.join(STAGES)}.")
    ] = "report",
) -> None:
    """Run the stages of CONFIG; start it again and it goes on where it was.

    \b
    mpo run configs/quickstart.yaml
    mpo run configs/quickstart.yaml --until pair          samples, scores, and shows what pairs there are
    mpo run configs/quickstart.yaml name=beta500 train.beta=500
    mpo run configs/quickstart.yaml objectives.dims.quality.role=hold evaluate.fail_on_regression=true

    Runs that agree up to some stage share everything up to it: after a change of pairing or training nothing
    is sampled or scored again. MPO_PROCESSES=2 ./launch.sh run CONFIG shares the work.

    A sample that cannot be read or judged has no score, so no pair chosen by scores has it: told at the end,
    with exit code 1.
    """
    if until not in STAGES:
        raise ConfigError(f"--until {until}: must be one of {', '.join(STAGES)}")
    from mpo.artifacts import resolve
    from mpo.scores import tell_unscored
    from mpo.show import evaluation_table, validation_table, yield_table

    settings = load(config, overrides or ())
    found = resolve(settings)
    with _only_start(settings):
        from mpo.cli_rewards import warnings_in_a_line
        from mpo.pipeline import run_stages

        with warnings_in_a_line():
            run_stages(found, until)
    if not _is_main():
        return
    yield_table(found)
    validation_table(found)
    evaluation_table(found)
    unscored = tell_unscored(found.artifacts.items())
    code = UNSCORED if unscored else 0
    if settings.evaluate.fail_on_regression and STAGES.index(until) >= STAGES.index("evaluate"):
        fallen = found.artifacts.evaluation.facts()["regressions"]
        if fallen:
            print(f"mpo: fell significantly: {', '.join(fallen)}", file=sys.stderr)
            code = FELL
    raise typer.Exit(code)


@app.command()
def plan(config: Config, overrides: Overrides = None) -> None:
    """What CONFIG would run: counts, what is there already, disk, memory and model calls. Loads no model.

    \b
    mpo plan configs/quickstart.yaml
    mpo plan configs/quickstart.yaml generate.candidates=16
    """
    from mpo.artifacts import resolve
    from mpo.plan import plan_table

    plan_table(resolve(load(config, overrides or ()), now=False))


@app.command()
def show(run: Annotated[Path, typer.Argument(help="A run's folder, or its name under runs/.")]) -> None:
    """The table of a finished or half-finished run.

    \b
    mpo show runs/quickstart
    mpo show quickstart
    """
    from mpo.show import evaluation_table, stage_table, validation_table, yield_table

    found = _run_at(run)
    stage_table(found)
    yield_table(found)
    validation_table(found)
    evaluation_table(found)


@app.command()
def diff(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of evaluated runs, or their names under runs/.")
    ],
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with the samples side by side.")
    ] = None,
) -> None:
    """Tuned models side by side, per dimension; paired by prompt where the prompts are the same.

    \b
    mpo diff quickstart b500
    mpo diff runs/mpo runs/dpo runs/random --html runs/rules.html
    """
    from mpo.compare import compare_page, compare_runs
    from mpo.show import comparison_table
    from mpo.store import write_bytes

    found = [_run_at(run) for run in runs]
    comparison_table(compare_runs(found))
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(html, compare_page(found, " · ".join(run.config.name for run in found)).encode())
        print(f"page: {html}")


def _run_at(run: Path) -> Run:
    """The run in a folder, or of that name under runs/."""
    from mpo.artifacts import CONFIG, resolve

    folder = next((place for place in (run, Path("runs") / run) if (place / CONFIG).is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"{run}: no run there (a folder with {CONFIG}), nor under runs/")
    return resolve(load(folder / CONFIG), now=False)


@quickstart.command()
def build(
    folder: Annotated[Path, typer.Argument(help="Where to; holds generator/ and judge/ then.")] = Path(
        "runs/weights"
    ),
    seed: int = 0,
    video: Annotated[bool, typer.Option("--video", help="The world of clips instead of pictures.")] = False,
) -> None:
    """Train the bundled generator and then the judge again, from nothing; each prints how long it has taken.

    \b
    mpo quickstart build
    mpo run configs/quickstart.yaml name=rebuilt generator.path=runs/weights/generator
    mpo quickstart build --video runs/video_weights
    mpo run configs/quickstart_video.yaml name=rebuilt_video generator.path=runs/video_weights/generator
    """
    for part in ("generator", "judge"):
        if (folder / part).exists():
            raise FileExistsError(f"{folder / part}: is there already; remove it or name another folder")
    if video:
        from quickstart.video import train_generator, train_judge
    else:
        from quickstart import train_generator, train_judge

    folder.mkdir(parents=True, exist_ok=True)
    train_generator.build(folder / "generator", seed)
    train_judge.main(folder / "judge", folder / "generator", seed)


cli_control.register(app)
cli_rewards.register(app)
cli_release.register(app, checklist)
cli_learn.register(app, checklist)


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and exit code 2."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their notes and bars would bury the run's own
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        app()
    except (ValueError, OSError, MemoryError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"{_end_of_bar()}mpo: {line}", file=sys.stderr)
        sys.exit(2)


def _end_of_bar() -> str:
    """What ends the line of a progress bar that is still open; nothing where there is none."""
    tqdm = sys.modules.get("tqdm")
    return "\n" if tqdm is not None and len(tqdm.tqdm._instances) else ""


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _only_start(config: RunConfig):
    """Refuse a second start of a run that is going on; the main process holds the run for all."""
    if not _is_main():
        return nullcontext()
    busy = f"{config.run_dir}: this run is going on in another process; wait for it, or choose another name="
    return locked(Path(config.run_dir) / ".lock", otherwise=busy)
