"""What a page's galleries show: cards of samples side by side, with every reward's scores and answers.

A page holds its galleries as JSON, each picture once, and a script lays them out; see `pages/gallery.js`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpo.embed import data_uri
from mpo.scores import ScoreTable
from mpo.store import Artifact, read_table

CARDS = 240  # that a gallery holds at most
BYTES = 16 << 20  # of pictures and clips that a gallery embeds at most

Key = tuple[int, int]  # prompt, candidate


@dataclass(frozen=True)
class Sample:
    """A picture or clip and, by reward, its total, its dimensions and P(yes) of each question; a reward that
    could not score it is left out."""

    media: Path
    prompt: str
    totals: dict[str, float]
    dimensions: dict[str, list[float]]
    p_yes: dict[str, list[float]]


@dataclass(frozen=True)
class Card:
    """Samples of one prompt, one for each step of its gallery."""

    samples: tuple[Sample, ...]
    change: float  # of the judge's total from first to last, or the gap of a pair

    @property
    def prompt(self) -> str:
        return self.samples[0].prompt


@dataclass(frozen=True)
class Gallery:
    """Cards in order of their change, greatest first, spread evenly over `of` that there are."""

    steps: tuple[str, ...]  # what the samples of a card are, such as loser, winner
    measure: str  # what `change` is called
    slider: bool  # whether the second picture can be moved through the steps
    rewards: dict[str, dict[str, Any]]  # name -> dimensions, questions [id, words], as `asked` has them
    cards: tuple[Card, ...]
    of: int


def asked(tables: Mapping[str, ScoreTable]) -> dict[str, dict[str, Any]]:
    """Reward -> the names of its dimensions and its questions as [id, words]."""
    return {
        reward: {
            "dimensions": list(table.levels["dimension"][0]),
            "questions": [list(question) for question in zip(table.asked, table.texts, strict=True)],
        }
        for reward, table in tables.items()
    }


class Samples:
    """The samples of a `generate` artifact, scored by `tables` (reward -> scores)."""

    def __init__(self, artifact: Artifact, tables: Mapping[str, ScoreTable]) -> None:
        self.artifact, self.tables = artifact, tables
        rows = read_table(*artifact.shards("candidates"))
        self.rows = {(row["prompt_id"], row["candidate"]): row for row in rows}

    def __getitem__(self, key: Key) -> Sample:
        scored = {name: table for name, table in self.tables.items() if not math.isnan(total(table, key))}
        return Sample(
            media=self.artifact.folder / self.rows[key]["media"],
            prompt=self.rows[key]["prompt"],
            totals={name: total(table, key) for name, table in scored.items()},
            dimensions={name: table.levels["dimension"][1][key].tolist() for name, table in scored.items()},
            p_yes={name: table.p_yes[key].tolist() for name, table in scored.items()},
        )


def total(table: ScoreTable, key: Key) -> float:
    """The total of a prompt's candidate; NaN where missing."""
    return table.levels["total"][1][key].item()


def spread(count: int, shown: int) -> list[int]:
    """At most `shown` ranks out of `count`, evenly spaced, the first and the last among them."""
    if count <= shown:
        return list(range(count))
    return [round(i * (count - 1) / (shown - 1)) for i in range(shown)]


def coarse_to_fine(count: int) -> Iterator[int]:
    """All of range(count), so that however many are taken, they are spread over it: both ends first."""
    seen: set[int] = set()
    shown = 2
    while len(seen) < count:
        for rank in spread(count, shown):
            if rank not in seen:
                seen.add(rank)
                yield rank
        shown = 2 * shown - 1


def pack(galleries: Mapping[str, Gallery]) -> dict[str, Any]:
    """The galleries as JSON: `media` (data URIs, each once), `samples`, and by name what `Gallery` holds.

    Where the pictures of a gallery are more than BYTES, cards in between are left out.
    """
    media: list[str] = []
    found: list[dict[str, Any]] = []
    place: dict[Path, int] = {}  # of a picture's sample in `found`

    def number(sample: Sample) -> int:
        if sample.media not in place:
            place[sample.media] = len(found)
            media.append(data_uri(sample.media))
            found.append(_json(sample, len(media) - 1))
        return place[sample.media]

    content: dict[str, Any] = {}
    for name, gallery in galleries.items():
        kept: dict[int, list[int]] = {}
        first = len(media)
        for rank in coarse_to_fine(len(gallery.cards)):
            kept[rank] = [number(sample) for sample in gallery.cards[rank].samples]
            if sum(map(len, media[first:])) > BYTES:
                break
        content[name] = {
            "steps": gallery.steps,
            "measure": gallery.measure,
            "slider": gallery.slider,
            "rewards": gallery.rewards,
            "of": gallery.of,
            "cards": [
                {
                    "prompt": gallery.cards[rank].prompt,
                    "change": _rounded(gallery.cards[rank].change),
                    "samples": numbers,
                }
                for rank, numbers in sorted(kept.items())
            ],
        }
    return {"media": media, "samples": found, "galleries": content}


def _json(sample: Sample, media: int) -> dict[str, Any]:
    return {
        "media": media,
        "totals": {name: _rounded(value) for name, value in sample.totals.items()},
        "dimensions": {name: list(map(_rounded, values)) for name, values in sample.dimensions.items()},
        "p_yes": {name: list(map(_rounded, values)) for name, values in sample.p_yes.items()},
    }


def _rounded(value: float) -> float | None:
    """Four significant digits; None for NaN, which JSON lacks."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def spread_cards(ranked: Sequence[Any], card: Callable[[Any], Card]) -> tuple[Card, ...]:
    """Cards for at most CARDS entries of a ranking, evenly spaced."""
    return tuple(card(ranked[rank]) for rank in spread(len(ranked), CARDS))
