"""Preference data from elsewhere, row by row: which rows hold a pair, and what is wrong with the others.

Layouts, told by the columns: Pick-a-Pic v2 (caption, jpg_0, jpg_1, label_0, label_1), or prompt, winner,
loser. A picture or clip lies in the table itself or is the path of a file in the folder, by whose content the
data are known. Lines of .jsonl are read here, since one may be broken; the rest is read with `datasets`.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import compute, parquet, types

from mpo.config import ConfigError
from rewards.preferences import LABELLED, PICK_A_PIC, WINNER_LOSER, Layout, layout_of

_KNOWN = (WINNER_LOSER, PICK_A_PIC)
_WANTED = WINNER_LOSER.columns | PICK_A_PIC.columns | {LABELLED}


class BadRow(ValueError):
    """A row that holds no pair; the message says why."""


class Medium(NamedTuple):
    """A picture or clip: a file or the content of one, and the column and path that a user knows it by."""

    name: str
    file: Path | bytes

    def content(self) -> bytes:
        """The file's bytes; BadRow for one that cannot be read."""
        try:
            return self.file if isinstance(self.file, bytes) else self.file.read_bytes()
        except OSError as error:
            raise BadRow(f"{self.name}: {error.strerror}") from None


class Table(NamedTuple):
    """What was read, with None where a row lacks a column."""

    columns: list[str]
    rows: Sequence[Mapping[str, Any]]
    outlines: Iterable[Mapping[str, Any]]  # the wanted columns of each row, with a byte for a file's content
    broken: dict[int, str]  # row -> why it could not be read


@dataclass(frozen=True)
class ForeignPairs:
    """The pairs of a data set: which of its rows, in order, and the rows that hold none."""

    table: Sequence[Mapping[str, Any]]
    layout: Layout
    root: Path  # where relative paths start
    rows: list[int]  # of the table, one a pair
    prompts: list[str]  # of the pairs
    bad: dict[int, str]  # row -> reason
    ties: int

    def media(self, pair: int) -> tuple[Medium, Medium]:
        """Winner and loser."""
        row, names = self.table[self.rows[pair]], (self.layout.first, self.layout.second)
        if self.layout.verdict and not row[self.layout.verdict[0]] > row[self.layout.verdict[1]]:
            names = names[::-1]
        return tuple(_medium(name, row[name], self.root) for name in names)


def read_pairs(source: str, revision: str | None = None) -> ForeignPairs:
    """The pairs of a folder (with .parquet or .jsonl tables) or of a hub data set at `revision`.

    Ties and rows without a label are left out; rows with another fault are in `bad`, all that can be known
    without opening a picture or clip. ConfigError where there is no such data or none but ties, its columns
    are not known, or a table names a file outside its folder.
    """
    from datasets.exceptions import DatasetGenerationError

    files = _tables(source)
    try:
        lines = files and files[0].suffix == ".jsonl"
        table = _read_lines(files, source) if lines else _read_dataset(source, revision, files)
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"pairs.from = {source!r}: cannot be read: {reason}") from error
    total = len(table.rows)
    if len(table.broken) == total:
        reason = f"none of {total} rows can be read; {table.broken[0]}" if total else "no rows"
        raise ConfigError(f"pairs.from = {source!r}: {reason}")
    layout = layout_of(table.columns, _KNOWN)
    if layout is None:
        raise ConfigError(
            f"pairs.from = {source!r}: columns {', '.join(sorted(table.columns))}; needed are "
            "prompt, winner, loser or caption, jpg_0, jpg_1, label_0, label_1"
        )
    pairs = _usable(table, layout, source)
    if pairs.ties == total:
        raise ConfigError(f"pairs.from = {source!r}: all {total} rows are ties or without a label")
    return pairs


def _tables(source: str) -> list[Path]:
    """The tables of a folder, all of one kind; none for a data set of the hub."""
    root = Path(source)
    if not root.is_dir():
        return []
    files = sorted(
        file
        for file in root.rglob("*")
        if file.suffix in (".parquet", ".jsonl")
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
    )
    if not files:
        raise ConfigError(f"pairs.from = {source!r}: holds no .parquet and no .jsonl table")
    kinds = {file.suffix: str(file.relative_to(root)) for file in files}
    if len(kinds) > 1:
        raise ConfigError(
            f"pairs.from = {source!r}: holds {' and '.join(sorted(kinds.values()))}; "
            "needed are tables of one kind, .parquet or .jsonl"
        )
    return files


def _read_lines(files: Sequence[Path], source: str) -> Table:
    rows, broken = [], {}
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(map(bytes.strip, lines), start=1):
                if not line:
                    continue
                try:
                    row = json.loads(line)
                    json.dumps(row, ensure_ascii=False).encode()  # half a character can go no further
                    if not isinstance(row, dict):
                        raise ValueError("not an object with a value for each column")
                except ValueError as error:
                    reason = str(error).partition(": line 1")[0]  # which json counts from this line
                    broken[len(rows)] = f"{file.relative_to(source)}, line {number}: {reason}"
                    row = {}
                rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    rows = [columns | row for row in rows]
    return Table(list(columns), rows, rows, broken)


def _read_dataset(source: str, revision: str | None, files: Sequence[Path]) -> Table:
    import datasets

    datasets.disable_progress_bars()
    loading = {"path": source, "revision": revision}
    if files:
        filled = [str(file) for file in files if parquet.read_metadata(file).num_rows]
        if not filled:  # which `datasets` cannot read
            return Table([], [], [], {})
        loading = {"path": "parquet", "data_files": filled}
    table = datasets.load_dataset(**loading, split="train")
    for name, feature in table.features.items():
        if isinstance(feature, (datasets.Image, datasets.Video)):
            table = table.cast_column(name, type(feature)(decode=False))
    return Table(table.column_names, table, _outlines(table), {})


def _outlines(table: Any) -> Iterator[dict[str, Any]]:
    columns = {name: _outline(table.data.column(name)) for name in table.column_names if name in _WANTED}
    for batch in pyarrow.table(columns).to_batches():
        yield from batch.to_pylist()


def _outline(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """The column with one byte in place of any content, none of which is read."""
    if types.is_struct(column.type):
        names = [field.name for field in column.type]
        return compute.make_struct(*map(_outline, column.flatten()), field_names=names)
    if types.is_binary(column.type) or types.is_large_binary(column.type):
        return compute.if_else(compute.greater(compute.binary_length(column), 0), b".", None)
    return column


def _usable(table: Table, layout: Layout, source: str) -> ForeignPairs:
    rows, prompts, bad, ties = [], [], dict(table.broken), 0
    for number, row in enumerate(table.outlines):
        if number in bad:
            continue
        try:
            prompt = row[layout.prompt]
            if not isinstance(prompt, str) or not prompt.strip():
                raise BadRow(f"{layout.prompt} is {prompt!r}, needed a text that is not blank")
            if layout.verdict and not _decided(row, layout.verdict):
                ties += 1
                continue
            for name in (layout.first, layout.second):
                _check_medium(name, row[name], source, number)
            if isinstance(row[layout.first], str) and row[layout.first] == row[layout.second]:
                raise BadRow(f"{layout.first} and {layout.second} are the same, {row[layout.first]}")
        except BadRow as error:
            bad[number] = str(error)
            continue
        rows.append(number)
        prompts.append(prompt)
    return ForeignPairs(table.rows, layout, Path(source), rows, prompts, bad, ties)


def _decided(row: Mapping[str, Any], verdict: Sequence[str]) -> bool:
    """Whether one of the two was preferred."""
    if not row.get(LABELLED, True):
        return False
    for name in verdict:
        value = row[name]
        if not isinstance(value, (int, float)) or not abs(value) < math.inf:
            raise BadRow(f"{name} is {value!r}, needed a number")
    return row[verdict[0]] != row[verdict[1]]


def _medium(column: str, value: Any, root: Path) -> Medium:
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
    if isinstance(content, bytes) and content:
        return Medium(column, content)
    if not isinstance(path, str) or not path:
        raise BadRow(f"{column} is {reprlib.repr(value)}, needed a file's path or content")
    return Medium(f"{column} {path}", root / path)


def _check_medium(column: str, value: Any, source: str, row: int) -> None:
    """BadRow where there is none; ConfigError for a path out of the folder and for a hidden file: what they
    hold is not part of the data's identity."""
    medium = _medium(column, value, Path(source))
    if isinstance(medium.file, bytes):
        return
    of_hub = isinstance(value, dict) and not Path(source).is_dir()  # a path in its cache
    root, path = os.path.abspath(source), Path(os.path.abspath(medium.file))
    if not of_hub and (not path.is_relative_to(root) or path.name.startswith(".")):
        raise ConfigError(
            f"pairs.from = {source!r}: row {row}: {medium.name}: must be a file in that folder, by whose "
            "content the pairs are known, and not a hidden one"
        )
    if not os.path.isfile(path):
        raise BadRow(f"{medium.name}: no such file")
