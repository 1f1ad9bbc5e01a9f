"""Preference data from elsewhere: a folder or a data set of the hub becomes candidates with latents.

Layouts, told by the columns: Pick-a-Pic v2 (caption, jpg_0, jpg_1, label_0, label_1), or prompt, winner,
loser. A picture or clip lies in the table itself or is the path of a file in the folder, by whose content the
data are known. Read with `datasets`. Winners become candidate 0 of their pair, losers candidate 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.compute
import torch

from mpo.config import ConfigError
from mpo.store import Artifact, read_table, write_bytes, write_json, write_table, write_tensors
from rewards.media import load_media
from rewards.preferences import LABELLED, PICK_A_PIC, WINNER_LOSER, Layout, layout_of

_KNOWN = (WINNER_LOSER, PICK_A_PIC)
_TABLE = {"prompt_id": "int64", "prompt": "string", "candidate": "int64", "seed": "int64", "media": "string"}
_SKIPPED = {"row": "int64", "reason": "string"}


class Encoder(Protocol):
    """What is asked of a generator here."""

    family: str
    modality: str
    frame_count: int  # of a sample; 1 for a picture

    def encode(self, media: list[Any]) -> torch.Tensor: ...

    def encode_prompts(self, prompts: list[str]) -> Any: ...


class BadRow(ValueError):
    """A row that holds no pair; the message says why."""


@dataclass(frozen=True)
class ForeignPairs:
    """The pairs of a data set: which of its rows, in order, and the rows that hold none."""

    table: Any  # datasets.Dataset
    layout: Layout
    root: Path  # where relative paths start
    rows: list[int]  # of the table, one a pair
    prompts: list[str]  # of the pairs
    bad: dict[int, str]  # row -> reason
    ties: int

    def media(self, pair: int) -> tuple[Path | bytes, Path | bytes]:
        """Winner and loser, as paths or as the content of a file."""
        row, names = self.table[self.rows[pair]], (self.layout.first, self.layout.second)
        if self.layout.verdict and not row[self.layout.verdict[0]] > row[self.layout.verdict[1]]:
            names = names[::-1]
        return tuple(self._medium(name, row[name]) for name in names)

    def _medium(self, column: str, value: Any) -> Path | bytes:
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
        if isinstance(content, bytes) and content:
            return content
        if not isinstance(path, str) or not path:
            raise BadRow(f"{column} is empty")
        return self.root / path


def read_pairs(source: str, revision: str | None = None) -> ForeignPairs:
    """The pairs of a folder (with .parquet or .jsonl tables) or of a hub data set at `revision`.

    Ties and rows without a label are left out; rows with another fault are in `bad`. ConfigError where there
    is no such data, its columns are not known, or a table names a file outside its folder.
    """
    import datasets

    datasets.disable_progress_bars()
    root = Path(source)
    if root.is_dir():
        files = sorted(root.rglob("*.parquet")) or sorted(root.rglob("*.jsonl"))
        if not files:
            raise ConfigError(f"pairs.from = {source!r}: holds no .parquet and no .jsonl table")
        kind = "parquet" if files[0].suffix == ".parquet" else "json"
        loading = {"path": kind, "data_files": [str(file) for file in files]}
    else:
        loading = {"path": source, "revision": revision}
    try:
        table = datasets.load_dataset(**loading, split="train")
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"pairs.from = {source!r}: cannot be read: {reason}") from error
    for name, feature in table.features.items():
        if isinstance(feature, (datasets.Image, datasets.Video)):
            table = table.cast_column(name, type(feature)(decode=False))
    layout = layout_of(table.column_names, _KNOWN)
    if layout is None:
        raise ConfigError(
            f"pairs.from = {source!r}: columns {', '.join(sorted(table.column_names))}; needed are "
            "prompt, winner, loser or caption, jpg_0, jpg_1, label_0, label_1"
        )
    for name in (layout.first, layout.second):
        _check_inside(table.data.column(name), name, source)
    return _usable(table, layout, root)


def _check_inside(column: pyarrow.ChunkedArray, name: str, source: str) -> None:
    """Refuse paths out of the folder, and hidden files: what they hold is not part of the data's identity."""
    if pyarrow.types.is_struct(column.type) and Path(source).is_dir():  # of the hub: a path in its cache
        content, path = (pyarrow.compute.struct_field(column, part) for part in ("bytes", "path"))
        column = pyarrow.compute.if_else(content.is_null(), path, None)
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        return
    root = os.path.abspath(source)
    for row, value in enumerate(column.to_pylist()):
        path = os.path.normpath(os.path.join(root, value or ""))
        if not Path(path).is_relative_to(root) or Path(path).name.startswith("."):
            raise ConfigError(
                f"pairs.from = {source!r}: row {row}: {name} = {value!r}: must be a file in that folder, by "
                "whose content the pairs are known, and not a hidden one"
            )


def _usable(table: Any, layout: Layout, root: Path) -> ForeignPairs:
    wanted = [layout.prompt, *layout.verdict]
    if layout == PICK_A_PIC and LABELLED in table.column_names:
        wanted.append(LABELLED)
    rows, prompts, bad, ties = [], [], {}, 0
    for number, row in enumerate(table.select_columns(wanted)):
        try:
            prompt = row[layout.prompt]
            if not isinstance(prompt, str) or not prompt.strip():
                raise BadRow(f"{layout.prompt} is {prompt!r}, needed a text that is not blank")
            if layout.verdict and not _decided(row, layout.verdict):
                ties += 1
                continue
        except BadRow as error:
            bad[number] = str(error)
            continue
        rows.append(number)
        prompts.append(prompt)
    return ForeignPairs(table, layout, root, rows, prompts, bad, ties)


def _decided(row: Mapping[str, Any], verdict: Sequence[str]) -> bool:
    """Whether one of the two was preferred."""
    if not row.get(LABELLED, True):
        return False
    for name in verdict:
        value = row[name]
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise BadRow(f"{name} is {value!r}, needed a number")
    return row[verdict[0]] != row[verdict[1]]


def foreign_shard(
    artifact: Artifact, index: int, pairs: ForeignPairs, members: Sequence[int], generator: Encoder
) -> None:
    """Write shard `index`, the pairs `members`: latents, conditioning, media, and last their table.

    A pair whose media cannot be used is not in the table but, with the reason, among the skipped.
    """
    (artifact.folder / "media").mkdir(exist_ok=True)
    latents: dict[int, torch.Tensor] = {}
    table, skipped = [], []
    for place, pair in enumerate(members):
        try:
            encoded, names = [], []
            for candidate, medium in enumerate(pairs.media(pair)):
                name = _keep(artifact, f"{pair:06d}-{candidate:02d}", medium, generator.modality)
                encoded.append(_encode(artifact.folder / name, generator))
                names.append(name)
        except ValueError as error:
            skipped.append({"row": pairs.rows[pair], "reason": str(error)})
            continue
        for candidate, name in enumerate(names):
            latents[2 * place + candidate] = encoded[candidate]
            table.append(
                {
                    "prompt_id": pair,
                    "prompt": pairs.prompts[pair],
                    "candidate": candidate,
                    "seed": 0,
                    "media": name,
                }
            )
    nothing = torch.zeros_like(next(iter(latents.values()))) if latents else torch.zeros(1)
    stacked = torch.stack([latents.get(row, nothing) for row in range(2 * len(members))])
    conditioning = generator.encode_prompts([pairs.prompts[pair] for pair in members])
    write_tensors(artifact.shard("conditioning", index), conditioning.tensors)
    write_tensors(artifact.shard("latents", index), {"latents": stacked})
    write_table(artifact.shard("skipped", index), skipped, _SKIPPED)
    write_table(artifact.shard("candidates", index), table, _TABLE)


def _keep(artifact: Artifact, stem: str, medium: Path | bytes, modality: str) -> str:
    """Lay a file's content into the artifact, whatever its format, and return its name there."""
    if isinstance(medium, Path):
        if not medium.is_file():
            raise BadRow(f"{medium}: no such file")
        suffix, content = medium.suffix, medium.read_bytes()
    else:
        suffix, content = (".jpg" if modality == "image" else ".mp4"), medium
    name = f"media/{stem}{suffix}"
    write_bytes(artifact.folder / name, content)
    return name


def _encode(path: Path, generator: Encoder) -> torch.Tensor:
    media = load_media(path, f"first:{generator.frame_count}")
    if media.kind != generator.modality:
        raise BadRow(f"{path.name}: {media.kind}, but {generator.family} makes {generator.modality}s")
    return generator.encode([media.image if media.kind == "image" else media.frames])[0]


def check_skipped(artifact: Artifact, pairs: ForeignPairs, source: str, allowed: float) -> dict[str, int]:
    """List the bad rows in skipped.json; ValueError where they are more than the share `allowed` of all."""
    bad = dict(pairs.bad)
    bad |= {row["row"]: row["reason"] for row in read_table(*artifact.shards("skipped"))}
    write_json(artifact.folder / "skipped.json", {str(row): bad[row] for row in sorted(bad)})
    total = len(pairs.rows) + len(pairs.bad)
    first = "; ".join(f"row {row}: {bad[row]}" for row in sorted(bad)[:3])
    if len(bad) == total or len(bad) > allowed * total:
        raise ValueError(
            f"pairs.from = {source!r}: {len(bad)} of {total} rows cannot be used, "
            f"pairs.allow_bad = {allowed:g} of them may be; {first}"
        )
    if bad:
        print(
            f"{source}: {len(bad)} of {total} rows left out: {first}; all in {artifact.folder}/skipped.json"
        )
    return {"prompts": total - len(bad), "samples": 2 * (total - len(bad)), "ties": pairs.ties}


def refuse_shared(pairs: ForeignPairs, name: str, prompts: Sequence[str]) -> None:
    """ValueError where one of the prompts of `prompts.NAME` is among those of the pairs."""
    if shared := set(pairs.prompts) & set(prompts):
        example = min(shared)[:80]
        raise ValueError(
            f"prompts.{name}: {len(shared)} of its prompts are in pairs.from too, such as {example!r}"
        )


def members(pairs: ForeignPairs, index: int, size: int) -> range:
    """The pairs of shard `index`."""
    return range(index * size, min((index + 1) * size, len(pairs.rows)))


def pair_ids(artifact: Artifact) -> Iterator[int]:
    """The pairs of a complete artifact, in order."""
    rows = read_table(*artifact.shards("candidates"))
    return (row["prompt_id"] for row in rows if row["candidate"] == 0)
