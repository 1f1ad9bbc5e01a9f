"""Tables of items on disk: .parquet files (pictures may lie inside) or a folder of them, .jsonl, .json."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow
import pyarrow.parquet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """A picture that lies inside a parquet file: read when it is needed."""

    file: Path
    column: str
    group: int  # row group of the file
    row: int  # row of the group

    def __str__(self):
        return f"{self.file} ({self.column}, row {self.row} of group {self.group})"

    def content(self) -> bytes:
        """The picture's file; ValueError where the row has none."""
        value = _row_group(self.file, self.column, self.group)[self.row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise ValueError(f"{self}: no picture")
        return content


@lru_cache(maxsize=4)  # items are read in order, two columns at a time
def _row_group(file: Path, column: str, group: int) -> pyarrow.ChunkedArray:
    return pyarrow.parquet.ParquetFile(file).read_row_group(group, columns=[column])[column]


Item = Path | Embedded


def on_disk(item: Item) -> bool:
    return isinstance(item, Embedded) or item.is_file()


class ParquetTable:
    """Columns by name of one or more parquet files; pictures stay in them until they are opened."""

    def __init__(self, path: Path, files: Sequence[Path]):
        self.path = path
        try:
            self._files = {file: pyarrow.parquet.ParquetFile(file) for file in files}
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path}: not a parquet file: {error}") from None
        self.columns = set(self._files[files[0]].schema_arrow.names)

    def __len__(self):
        return sum(file.metadata.num_rows for file in self._files.values())

    def column(self, name: str) -> list:
        """Values of one column, a row each."""
        return [value for file in self._files.values() for value in file.read([name])[name].to_pylist()]

    def items(self, name: str, root: Path) -> list[Item]:
        """Media of one column: paths, relative ones from `root`, or pictures inside the files."""
        kind = next(iter(self._files.values())).schema_arrow.field(name).type
        if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
            return [root / value for value in filled(self, name)]
        return [
            Embedded(path, name, group, row)
            for path, file in self._files.items()
            for group in range(file.num_row_groups)
            for row in range(file.metadata.row_group(group).num_rows)
        ]


class JsonTable:
    """Columns by name of a .jsonl file or of a .json list of objects."""

    def __init__(self, path: Path):
        self.path = path
        text = path.read_text(encoding="utf-8")
        try:
            lines = [text] if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
            rows = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from None
        self._rows = rows[0] if path.suffix == ".json" else rows
        if not isinstance(self._rows, list) or not all(isinstance(row, dict) for row in self._rows):
            raise ValueError(f"{path}: needed objects, one a row")
        self.columns = set(self._rows[0]) if self._rows else set()

    def __len__(self):
        return len(self._rows)

    def column(self, name: str) -> list:
        """Values of one column, a row each."""
        for number, row in enumerate(self._rows, start=1):
            if name not in row:
                raise ValueError(f"{self.path}: row {number} has no {name!r}")
        return [row[name] for row in self._rows]

    def items(self, name: str, root: Path) -> list[Item]:
        """Paths of one column, relative ones from `root`."""
        return [root / str(value) for value in filled(self, name)]


Table = ParquetTable | JsonTable


def filled(table: Table, name: str) -> list:
    """Values of one column, a row each; ValueError naming the first row that has null there."""
    values = table.column(name)
    if None in values:
        raise ValueError(f"{table.path}: row {values.index(None) + 1} has no {name!r}")
    return values


def read_table(path: str | Path) -> Table:
    """A table of at least one row; ValueError or FileNotFoundError of one line otherwise."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path}: no .parquet file in it")
    match files[0].suffix:
        case ".parquet":
            table = ParquetTable(path, files)
        case ".json" | ".jsonl":
            table = JsonTable(path)
        case _:
            raise ValueError(f"{path}: allowed are .parquet, .jsonl and .json files and folders of .parquet")
    if not len(table):
        raise ValueError(f"{path}: no row in it")
    return table


def media_root(path: str | Path, media: str | Path | None) -> Path:
    """Where relative item paths start: `media`, or the folder of the table."""
    path = Path(path)
    return Path(media) if media is not None else (path if path.is_dir() else path.parent)


def check_missing(where: str, missing: Sequence[str], lost: int, total: int, allowed: float) -> None:
    """Warns of `lost` rows of `total` that are left out and why; past the share `allowed`, ValueError."""
    if not missing:
        return
    listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    message = f"{where}: {lost} of {total} rows cannot be used: {listed}"
    if lost == total or lost > allowed * total:
        raise ValueError(f"{message}; allowed: {allowed:.0%} of the rows")
    logger.warning("%s; they are left out", message)
