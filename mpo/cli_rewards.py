"""Commands that ask, score and compare images and videos."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from mpo.cli_release import arithmetic
from mpo.config import ConfigError

if TYPE_CHECKING:
    from rewards import Scorecard

MEDIA_SUFFIXES = frozenset(
    ".png .jpg .jpeg .webp .bmp .gif .tif .tiff .mp4 .mov .mkv .webm .avi .m4v".split()
)

UNSCORED = 1  # exit code when some items could not be read or judged; the others are scored

Media = Annotated[list[str], typer.Argument(help="Images and videos; folders and globs are searched.")]
Reward = Annotated[Path | None, typer.Option(help="YAML file of a reward; see configs/rewards/.")]
Judge = Annotated[str | None, typer.Option(help="Folder or hub id of the judge, in the place of --reward.")]
Checklist = Annotated[
    str | None, typer.Option(help="YAML file, folder of the release's files, or name of a fetched one.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the reward, such as device=cpu."),
]
Cache = Annotated[Path | None, typer.Option(help="Score cache; default: in the user's cache folder.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, one object a line.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("vqa")(vqa)
    app.command("score")(score)
    app.command("compare")(compare)


def vqa(
    media: Media,
    question: Annotated[list[str], typer.Option(help="A yes/no question; repeatable.")],
    prompt: Annotated[str | None, typer.Option(help="What [[prompt]] in a question stands for.")] = None,
    reward: Reward = None,
    judge: Judge = None,
    settings: Settings = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Ask a judge about images or videos: yes or no, and P(yes).

    \b
    mpo vqa cat.png --question "Is there a cat?" --judge quickstart/weights/judge
    mpo vqa pictures/ --question 'Is it "[[prompt]]"?' --prompt "a cat" --reward configs/rewards/qwen_vl.yaml
    """
    from rewards.build import assemble
    from rewards.checklist import PROMPT, Checklist, Question

    if prompt is None and (unclear := [text for text in question if PROMPT in text]):
        raise ConfigError(f"--question {unclear[0]!r}: --prompt is needed, which {PROMPT} stands for")
    asked = tuple(
        Question(f"question {n}", text, "answers", "answers", 1.0) for n, text in enumerate(question, 1)
    )
    used = replace(reward_settings(reward, judge, None, settings, cache), features={})  # of no question here
    items = find_media(media)
    found = assemble(used, Checklist("vqa", asked))
    cards = _score(found, items, [prompt or ""] * len(items))
    for card in cards:
        texts = found.checklist.ask(card.prompt)
        for (name, p_yes), text in zip(card.p_yes.items(), texts, strict=False):
            answer = "yes" if p_yes > 0.5 else "no"
            outside = card.outside[name]
            if as_json:
                facts = {
                    "item": card.item,
                    "question": text,
                    "answer": answer,
                    "p_yes": p_yes,
                    "outside": outside,
                }
                print(json.dumps(facts))
            else:
                print(f"{answer:3}  P(yes) {p_yes:.4f}  neither {outside:.4f}  {card.item}  {text}")
    _finish(_tell(cards))


def score(
    media: Media,
    prompt: Annotated[str | None, typer.Option(help="The prompt of every item.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts, one for each item in order.")] = None,
    reward: Reward = None,
    judge: Judge = None,
    checklist: Checklist = None,
    settings: Settings = None,
    cache: Cache = None,
    level: Annotated[str, typer.Option(help="total | dimension | subdimension | question.")] = "total",
    as_json: Json = False,
    table: Annotated[Path | None, typer.Option("--csv", help="Table to write, a row an item.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Bar chart of the dimensions to write, as PNG.")] = None,
) -> None:
    """Score images or videos, one line an item.

    \b
    mpo score cat.png --prompt "a cat" --reward configs/rewards/quickstart.yaml
    mpo score pictures/ --prompts prompts.txt --reward configs/rewards/qwen_vl.yaml --level dimension
    mpo score cat.png --prompt "a cat" --judge FOLDER --checklist mine.yaml --csv scores.csv --plot bars.png

    An item that cannot be read or judged is named at the end, and the exit code is then 1.
    """
    from rewards.build import load_reward
    from rewards.checklist import LEVELS
    from rewards.choice import check_choice

    check_choice("--level", level, LEVELS)
    for option, path in (("--csv", table), ("--plot", plot)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            reason = "a folder; needed a file" if path.is_dir() else f"no folder {path.parent}"
            raise ConfigError(f"{option} {path}: {reason}")
    items = find_media(media)
    texts = _prompts(prompt, prompts, len(items))
    found = load_reward(reward_settings(reward, judge, checklist, settings, cache))
    cards = _score(found, items, texts)
    print(f"{found.checklist.name}: {arithmetic(found.checklist)}", file=sys.stderr)
    for card in cards:
        if as_json:
            print(json.dumps(card.to_dict()))
        elif card.missing is None:
            parts = [] if level == "total" else [f"{k} {v:+.4f}" for k, v in card.level(level).items()]
            print("  ".join([f"{card.total:+.4f}", card.item, *parts]))
    if table is not None:
        write_csv(cards, found.names(level), level, table)
    scored = _tell(cards)
    if plot is not None:
        from rewards.plot import plot_scorecards

        plot_scorecards(cards, "dimension", plot)
    _finish(scored)


def compare(
    first: Annotated[Path, typer.Argument(help="Image or video.")],
    second: Annotated[Path, typer.Argument(help="Image or video.")],
    prompt: Annotated[str, typer.Option(help="What both were made for.")],
    reward: Reward = None,
    judge: Judge = None,
    checklist: Checklist = None,
    settings: Settings = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Say which of two items is better, by how much, and in which dimensions.

    \b
    mpo compare a.mp4 b.mp4 --prompt "a cat" --reward configs/rewards/visionreward_video.yaml
    """
    from rewards.build import load_reward
    from rewards.compare import compare as compare_two

    found = load_reward(reward_settings(reward, judge, checklist, settings, cache))
    with warnings_in_a_line():
        result = compare_two(found, first, second, prompt)
    if as_json:
        print(json.dumps(result.to_dict()))
    elif result.better is not None:
        better = {"first": first, "second": second, "tie": "neither"}[result.better]
        print(f"better: {better}")
        width = max(map(len, result.dimensions))
        print(f"{'total':{width}} {result.total:+.4f}  (sum of weight x answer, {first} minus {second})")
        for name, value in result.dimensions.items():
            print(f"{name:{width}} {value:+.4f}")
    _finish(_tell([result.first, result.second]))


def find_media(given: Sequence[str]) -> list[Path]:
    """The files of paths, folders (their images and videos, by name) and globs, in the order given.

    A path that does not exist is kept, so that it is reported as an item that cannot be read.
    """
    found: list[Path] = []
    for entry in given:
        path = Path(entry)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in MEDIA_SUFFIXES)
            if not inside:
                raise ConfigError(f"{path}: no images or videos in this folder")
            found += inside
        elif not path.exists() and glob.has_magic(entry):
            matches = sorted(glob.glob(entry, recursive=True))
            if not matches:
                raise ConfigError(f"{entry}: matches no file")
            found += map(Path, matches)
        else:
            found.append(path)
    return found


def write_csv(cards: Sequence[Scorecard], names: Sequence[str], level: str, path: Path) -> None:
    """A row an item: item, prompt, total, the columns of the level, why it is missing if it is, and notes."""
    columns = () if level == "total" else names
    part = Path(f"{path}.{os.getpid()}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "prompt", "total", *columns, "missing", "notes"])
        for card in cards:
            values = card.level(level)
            total = "" if card.missing else card.total
            shown = (values.get(name, "") for name in columns)
            last = (card.missing or "", "; ".join(card.notes))
            writer.writerow([card.item, card.prompt, total, *shown, *last])
    part.replace(path)


def reward_settings(reward, judge, checklist, settings, cache):
    """Settings of the reward that the options name; ConfigError where they name none or two."""
    from rewards.settings import read_settings, read_yaml

    if (reward is None) == (judge is None):
        given = "both were given; name one reward" if reward else "a reward is needed"
        raise ConfigError(
            f"{given}: --reward configs/rewards/NAME.yaml, or --judge FOLDER, to score with --checklist"
        )
    content: dict[str, Any] = dict(read_yaml(reward)) if reward else {"judge": judge}
    if checklist is not None:
        content["checklist"] = checklist
    for entry in settings or ():
        key, equals, value = entry.partition("=")
        if not equals:
            raise ConfigError(f"--set {entry}: needed KEY=VALUE")
        *parents, last = key.split(".")
        place = content
        for depth, parent in enumerate(parents, start=1):
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {entry}: {'.'.join(parents[:depth])} is a value")
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {entry}: not a YAML value") from None
    folder = cache or content.get("cache") or _user_cache()
    return read_settings({**content, "cache": str(folder)})


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpo" / "scores"


def _prompts(prompt: str | None, file: Path | None, count: int) -> list[str]:
    if (prompt is None) == (file is None):
        raise ConfigError(
            "prompts are needed: --prompt TEXT for all items, or --prompts FILE with one for each"
        )
    if file is None:
        return [prompt] * count
    from mpo.prompts import read_prompt_rows

    rows = read_prompt_rows(file)
    if len(rows) != count:
        raise ConfigError(f"{file}: {len(rows)} prompts for {count} items; needed one for each, in order")
    return rows


def _score(reward, items: list[Path], prompts: list[str]) -> list[Scorecard]:
    """Scorecards of all items, with a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    with warnings_in_a_line():
        stream = reward.stream(items, prompts)
        shown = {"console": Console(stderr=True), "transient": True, "disable": not sys.stderr.isatty()}
        return list(track(stream, "scoring", total=len(items), **shown))


class warnings_in_a_line(warnings.catch_warnings):
    """Shows warnings as one line each, without the place in the code that they come from."""

    def __enter__(self):
        super().__enter__()
        warnings.showwarning = lambda message, *_, **__: print(f"mpo: warning: {message}", file=sys.stderr)


def _tell(cards: Sequence[Scorecard]) -> bool:
    """Put notes, and why items are missing, on standard error; whether every item was scored."""
    for note in dict.fromkeys(note for card in cards for note in card.notes):
        print(f"mpo: {note}", file=sys.stderr)
    missing = [card for card in cards if card.missing is not None]
    for card in missing:
        print(f"mpo: not scored: {card.missing}", file=sys.stderr)
    return not missing


def _finish(scored: bool) -> None:
    """End with exit code `UNSCORED` unless every item was scored."""
    if not scored:
        raise typer.Exit(UNSCORED)
