"""Prompt sets: read from files, checked, without repeats. Imports no torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from mpo.config import ConfigError, PromptsConfig


def read_prompts(path: str | Path) -> list[str]:
    """The distinct prompts of a file, in its order; see `read_prompt_rows`."""
    return list(dict.fromkeys(read_prompt_rows(path)))


def read_prompt_rows(path: str | Path) -> list[str]:
    """The prompts of a file, in its order and with repeats.

    One prompt a line in `.txt`; a `prompt` column in `.jsonl`, `.parquet` and `.csv`, where a prompt may hold
    line breaks. Raises FileNotFoundError for no file, and ValueError naming the row for what is not a prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such prompt file")
    match path.suffix:
        case ".txt":
            rows = [line.strip() for line in _text(path).split("\n") if line.strip()]
        case ".jsonl":
            rows = [
                _json_prompt(path, i, line)
                for i, line in enumerate(_text(path).split("\n"), 1)
                if line.strip()
            ]
        case ".csv":
            with path.open(newline="", encoding="utf-8") as lines:
                rows = [row.get("prompt") for row in csv.DictReader(lines)]
        case ".parquet":
            rows = _parquet_prompts(path)
        case other:
            raise ValueError(
                f"{path}: prompt files end in .txt, .jsonl, .csv or .parquet, not {other or 'nothing'!r}"
            )
    for number, prompt in enumerate(rows, 1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{path}: row {number} has no prompt (a text that is not blank), but {prompt!r}")
    if not rows:
        raise ValueError(f"{path}: holds no prompt")
    return rows


def prompt_sets(config: PromptsConfig) -> tuple[list[str], list[str]]:
    """(training prompts, held-out prompts), each cut to its limit.

    Raises ValueError where a prompt is in both, since what was trained on cannot be held out, and where a
    single one is held out, from which no interval follows.
    """
    train = _prompts_of(config, "train")[: config.train_limit] if config.train else []
    heldout = _prompts_of(config, "heldout")[: config.heldout_limit]
    if len(heldout) < 2:
        raise ConfigError(
            f"prompts.heldout = {config.heldout!r}: one prompt has no interval; needed at least 2"
        )
    shared = set(train) & set(heldout)
    if shared:
        example = min(shared)
        raise ConfigError(
            f"prompts.heldout = {config.heldout!r}: {len(shared)} of its prompts are training prompts too, "
            f"such as {example[:80]!r}"
        )
    return train, heldout


def validation_prompts(
    config: PromptsConfig, count: int, train: Sequence[str], heldout: Sequence[str]
) -> list[str]:
    """`count` prompts that are neither trained on nor held out: the first of their own file, or those that
    follow the training prompts in theirs.

    ConfigError where there are too few, or a prompt of their own file is in another set.
    """
    taken = {*train, *heldout}
    if config.validation is None:
        found = [prompt for prompt in _prompts_of(config, "train")[len(train) :] if prompt not in taken]
        enough = "set prompts.validation to a file of them, or prompts.train_limit to leave some over"
        source = f"prompts.train = {config.train!r}"
    else:
        found = _prompts_of(config, "validation")
        enough = "lower validate.prompts"
        source = f"prompts.validation = {config.validation!r}"
        if shared := [prompt for prompt in found[:count] if prompt in taken]:
            raise ConfigError(
                f"{source}: {len(shared)} of its prompts are training or held-out prompts too, "
                f"such as {min(shared)[:80]!r}"
            )
    if len(found) < count:
        raise ConfigError(f"{source}: has {len(found)} prompts for validate.prompts = {count}; {enough}")
    return found[:count]


def _prompts_of(config: PromptsConfig, name: str) -> list[str]:
    """`read_prompts` of a setting's file; what is wrong with it is told with the setting's name."""
    try:
        return read_prompts(getattr(config, name))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"prompts.{name} = {error}") from None
    except ValueError as error:
        raise ConfigError(f"prompts.{name} = {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None


def _json_prompt(path: Path, line_number: int, line: str) -> object:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {line_number} is not JSON: {error}") from None
    return row.get("prompt") if isinstance(row, dict) else None


def _parquet_prompts(path: Path) -> list[object]:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path, columns=["prompt"])["prompt"].to_pylist()
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise ValueError(
            f"{path}: no parquet table with a `prompt` column: {str(error).splitlines()[0]}"
        ) from None
