"""Scores on disk and as tensors: what the score stage writes and what pairing, evaluation and report read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow
import torch
from pyarrow import parquet
from torch import Tensor

from mpo.objectives import by_prompt
from mpo.store import Artifact, read_table, write_json, write_table

if TYPE_CHECKING:
    from rewards.checklist import Checklist
    from rewards.scorecard import Scorecard

Levels = dict[str, tuple[tuple[str, ...], Tensor]]  # level -> names, scores [P, N, K]

NAMES = "levels.json"
_COLUMNS = {"dimension": "dimensions", "subdimension": "subdimensions", "question": "questions"}
_SCHEMA = {
    "prompt_id": "int64",
    "candidate": "int64",
    "total": "double",
    "dimensions": "list[double]",
    "subdimensions": "list[double]",
    "questions": "list[double]",
    "p_yes": "list[double]",
    "outside": "list[double]",
    "missing": "string",
}


@dataclass(frozen=True)
class ScoreTable:
    """All scores of one artifact, float64, NaN where missing."""

    levels: Levels
    asked: tuple[str, ...]  # ids of the questions
    texts: tuple[str, ...]  # their words
    p_yes: Tensor  # [P, N, Q]
    missing: list[tuple[int, int, str]]  # prompt, candidate, reason


def first_candidates(levels: Levels, count: int | None) -> Levels:
    """The same levels [P, N, K] with only the first `count` candidates of each prompt; None: with all.

    A candidate depends on its own seed alone, so these are what a run with so few candidates would have.
    """
    return {level: (names, scores[:, :count]) for level, (names, scores) in levels.items()}


def paths(checklist: Checklist) -> dict[str, list[str]]:
    """Level -> the names of its columns as paths, such as `quality.clarity`."""
    parents = {column.subdimension: column.dimension for column in checklist.columns}
    return {
        "dimension": list(checklist.dimensions),
        "subdimension": [f"{parents[name]}.{name}" for name in checklist.subdimensions],
        "question": [f"{column.dimension}.{column.subdimension}.{column.id}" for column in checklist.columns],
    }


def write_names(artifact: Artifact, checklist: Checklist) -> None:
    """Note what the columns of the scores are, and which questions were asked in what words."""
    texts = [question.text for question in checklist.questions]
    write_json(artifact.folder / NAMES, {**paths(checklist), "asked": list(checklist.ids), "texts": texts})


def write_scores(
    artifact: Artifact,
    index: int,
    keys: Sequence[tuple[int, int]],
    cards: Sequence[Scorecard],
    checklist: Checklist,
) -> None:
    """Write shard `index`: the scorecard of each (prompt, candidate)."""
    nan = float("nan")
    rows = []
    for (prompt, candidate), card in zip(keys, cards, strict=True):
        row = {"prompt_id": prompt, "candidate": candidate, "total": card.total, "missing": card.missing}
        for level, column in _COLUMNS.items():
            row[column] = [card.level(level).get(name, nan) for name in checklist.names(level)]
        for column in ("p_yes", "outside"):
            row[column] = [getattr(card, column).get(name, nan) for name in checklist.ids]
        rows.append(row)
    write_table(artifact.shard("scores", index), rows, _SCHEMA)


def read_scores(artifact: Artifact) -> ScoreTable:
    """The scores of a complete artifact."""
    content = json.loads((artifact.folder / NAMES).read_text())
    table = pyarrow.concat_tables([parquet.read_table(path) for path in artifact.shards("scores")])
    prompts, candidates = (torch.tensor(table[name].to_numpy()) for name in ("prompt_id", "candidate"))

    def matrix(column: str) -> Tensor:
        values = table[column].combine_chunks()
        flat = values if column == "total" else values.flatten()
        return by_prompt(prompts, candidates, torch.tensor(flat.to_numpy()).reshape(len(table), -1))

    levels = {"total": (("total",), matrix("total"))}
    levels |= {level: (tuple(content[level]), matrix(column)) for level, column in _COLUMNS.items()}
    reasons = zip(prompts.tolist(), candidates.tolist(), table["missing"].to_pylist(), strict=True)
    return ScoreTable(
        levels=levels,
        asked=tuple(content["asked"]),
        texts=tuple(content["texts"]),
        p_yes=matrix("p_yes"),
        missing=[entry for entry in reasons if entry[2] is not None],
    )


def refuse_unscored(artifact: Artifact) -> None:
    """ValueError where none of the samples has a score, in whatever shards, with the first one's reason."""
    shards = artifact.shards("scores")
    reasons = [row["missing"] for row in read_table(*shards)] if shards else []
    if reasons and None not in reasons:
        raise ValueError(f"{artifact.folder}: none of {len(reasons)} samples has a score; {reasons[0]}")


def tell_unscored(artifacts: Iterable[tuple[str, Artifact]]) -> bool:
    """Say on standard error which of (name, artifact) hold samples without a score, a line each: how many,
    and why the first has none. Returns whether there are any.
    """
    told = False
    for name, artifact in artifacts:
        missing = read_scores(artifact).missing if artifact.done and artifact.shards("scores") else []
        if missing:
            line = f"{name.replace('_', ' ')}: {len(missing)} without a score, so in no choice and no mean"
            print(f"mpo: {line}; the first: {missing[0][2]}", file=sys.stderr)
            told = True
    return told
