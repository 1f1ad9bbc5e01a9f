"""Commands that bring and show the files of VisionReward's release."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rewards import Checklist
    from rewards.checklist import Feature, Question


def register(app: typer.Typer, checklist: typer.Typer) -> None:
    """Add the commands to `app`, and those about checklists to the group `checklist`."""
    app.command("convert-sat")(convert_sat)
    checklist.command("fetch")(fetch)
    checklist.command("show")(show)


def convert_sat(
    source: Annotated[
        list[Path], typer.Argument(help="The checkpoint's folder, its tar, or all parts of the tar.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write: config.json and safetensors.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a Llama 3 tokenizer to put beside; the release has none."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16 | float16 | float32; default: as stored.")
    ] = None,
) -> None:
    """Convert the released VisionReward-Image checkpoint to safetensors; goes on where it was stopped.

    \b
    mpo convert-sat VisionReward-Image/ --out visionreward-image --tokenizer zai-org/cogvlm2-llama3-chat-19B
    mpo convert-sat ckpts/split_part_* --out visionreward-image --dtype bfloat16
    """
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn

    from rewards.cogvlm2.convert import convert_sat as convert

    shown = {"console": Console(stderr=True), "transient": True, "disable": not sys.stderr.isatty()}
    with Progress(
        *Progress.get_default_columns()[:2], DownloadColumn(), TimeRemainingColumn(), **shown
    ) as bar:
        task = bar.add_task("converting", total=None)
        folder = convert(
            source[0] if len(source) == 1 else source,
            out,
            tokenizer,
            dtype,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(f"{folder}: converted; use it as --judge {folder}")
    if tokenizer is None and not any(folder.glob("tokenizer*")):
        hint = "the same command with --tokenizer adds it"
        print(f"mpo: {folder} has no tokenizer yet, and a judge needs one; {hint}", file=sys.stderr)


def fetch(
    name: Annotated[str, typer.Argument(help="visionreward-video | visionreward-image.")],
    source: Annotated[Path | None, typer.Option("--from", help="Folder that has the files already.")] = None,
) -> None:
    """Bring the release's question lists and weights to the user's cache, and check their SHA-256.

    \b
    mpo checklist fetch visionreward-video
    mpo checklist fetch visionreward-image --from VisionReward/
    """
    from rewards.fetch import fetch as fetch_release

    folder = fetch_release(name, source)
    print(f"{folder}: checked; use it as --checklist {name}")


def show(
    checklist: Annotated[str, typer.Argument(help="YAML file, folder of the release's files, or a name.")],
    policy: Annotated[str, typer.Option(help="release | strict, for the release's files.")] = "release",
    questions: Annotated[str, typer.Option(help="select | full, for the release's files.")] = "select",
) -> None:
    """Print a checklist as a tree of weights: dimensions, sub-dimensions, questions; gates come last.

    \b
    mpo checklist show configs/checklists/quickstart.yaml
    mpo checklist show visionreward-image --policy strict
    """
    from rewards.build import load_checklist

    found = load_checklist(checklist, policy, questions)
    print(f"{found.name}: {arithmetic(found)}")
    for dimension in found.dimensions:
        inside = [column for column in found.columns if column.dimension == dimension]
        print(f"{_total(inside)}  {dimension}")
        for name in dict.fromkeys(column.subdimension for column in inside):
            leaves = [column for column in inside if column.subdimension == name]
            print(f"  {_total(leaves)}  {name}")
            for column in leaves:
                also = " [gate]" if column.id in found.gates else ""
                print(f"    {_total([column])}  {_described(column)}{also}")
    for question in found.questions:
        if question.weight == 0:
            use = "gate" if question.id in found.gates else "no weight"
            print(f"{use:>8}  {_described(question)}")


def _total(columns: Sequence[Question | Feature]) -> str:
    return f"{sum(column.weight for column in columns):8.4f}"


def _described(column: Question | Feature) -> str:
    """A question as it is asked, or what measures a feature."""
    from rewards.checklist import Feature

    if isinstance(column, Feature):
        return f"{column.id}: measured by {column.model}"
    return f"{column.id}: {column.text.strip()}" + (f" [if {column.gate}]" if column.gate else "")


def arithmetic(checklist: Checklist) -> str:
    """How a checklist makes its score, in a few words."""
    return (
        f"{checklist.reduction} of weight x answer, {checklist.coding}, {len(checklist.questions)} questions"
    )
