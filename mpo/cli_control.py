"""Commands that look at a choice of objectives before training, and compare many choices after it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpo.config import ConfigError, load

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the file's.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("pairs")(pairs)


def pairs(
    config: Annotated[Path, typer.Argument(help="YAML file of the run; its candidates must be scored.")],
    overrides: Overrides = None,
    margins: Annotated[str, typer.Option(help="Such as 0.1,0.2; default: 1/4 to 4 times the run's.")] = "",
    counts: Annotated[str, typer.Option(help="Candidates a prompt, such as 2,4; default: powers of 2.")] = "",
    share: Annotated[float, typer.Option(help="Share of all pairs to look for; the paper's is 0.43.")] = 0.43,
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
