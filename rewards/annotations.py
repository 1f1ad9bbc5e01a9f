"""Annotated items: which yes/no questions people answered how, to train and to measure a judge.

    VisionRewardDB-Image, -Video    image or video_path, prompt, meta_result, meta_mask; and a question file
    simple                          item, question, answer, and prompt where questions hold [[prompt]]

In VisionRewardDB, `meta_result` has one answer a question of the file (1 yes, 0 no), and `meta_mask` says
which of them count (1) and which do not (0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rewards.checklist import PROMPT
from rewards.tables import Item, Table, check_missing, filled, media_root, on_disk, read_table

_ANSWERS = {"yes": True, "no": False, "1": True, "0": False, "true": True, "false": False}


@dataclass(frozen=True)
class Annotated:
    """One item with its prompt, the indices of the questions that were answered, and the answers."""

    item: Item
    prompt: str
    questions: tuple[int, ...]
    answers: tuple[bool, ...]


@dataclass(frozen=True)
class Annotations:
    """Annotated items; `questions` are the texts that their indices stand for."""

    name: str
    questions: tuple[str, ...]
    items: tuple[Annotated, ...]

    def __len__(self):
        return sum(len(item.answers) for item in self.items)

    def asked(self, question: int, item: Annotated) -> str:
        """A question as asked about an item."""
        return self.questions[question].replace(PROMPT, item.prompt)

    def counts(self) -> np.ndarray:
        """Answers by question, [Q, 2]: how many no, how many yes."""
        counts = np.zeros((len(self.questions), 2), dtype=int)
        for item in self.items:
            np.add.at(counts, (list(item.questions), [int(answer) for answer in item.answers]), 1)
        return counts


def read_annotations(
    path: str | Path,
    questions: str | Path | None = None,
    media: str | Path | None = None,
    allow_missing: float = 0.05,
) -> Annotations:
    """Annotations of a file or folder; the layout is told by its columns.

    questions: text file with one question a line, for VisionRewardDB. media: folder that relative paths
    start from
    (default: where the file lies). Items that are not on disk are listed and left out, up to
    `allow_missing` of all.
    """
    table, root = read_table(path), media_root(path, media)
    if {"meta_result", "meta_mask"} <= table.columns:
        texts, items = _read_meta(table, root, questions)
    elif {"item", "question", "answer"} <= table.columns:
        texts, items = _read_simple(table, root)
    else:
        raise ValueError(
            f"{path}: columns {', '.join(sorted(table.columns))}; needed: item, question, answer, "
            "or meta_result and meta_mask"
        )
    kept = tuple(item for item in items if on_disk(item.item))
    reasons = [f"{item.item} is not there" for item in items if not on_disk(item.item)]
    check_missing(str(path), reasons, len(items) - len(kept), len(items), allow_missing)
    found = Annotations(Path(path).stem, texts, kept)
    if not len(found):
        raise ValueError(f"{path}: no answer in it that counts")
    return found


def _read_meta(
    table: Table, root: Path, questions: str | Path | None
) -> tuple[tuple[str, ...], list[Annotated]]:
    if questions is None:
        raise ValueError(f"{table.path}: meta_result needs its question file (questions=meta_qa_en.txt)")
    texts = tuple(
        line.strip() for line in Path(questions).read_text(encoding="utf-8").splitlines() if line.strip()
    )
    column = next((name for name in ("image", "video_path", "image_path") if name in table.columns), None)
    if column is None:
        raise ValueError(f"{table.path}: no image, image_path or video_path beside meta_result")
    prompts = _prompts(table)
    items = []
    rows = zip(
        table.items(column, root),
        prompts,
        filled(table, "meta_result"),
        filled(table, "meta_mask"),
        strict=True,
    )
    for number, (item, prompt, result, mask) in enumerate(rows, start=1):
        if not len(texts) == len(result) == len(mask):
            raise ValueError(
                f"{table.path}: row {number} has {len(result)} answers and a mask of {len(mask)}, "
                f"but {questions} has {len(texts)} questions"
            )
        counted = [index for index, counts in enumerate(mask) if counts]
        answers = tuple(_answer(table.path, number, result[index]) for index in counted)
        items.append(Annotated(item, prompt, tuple(counted), answers))
    return texts, items


def _read_simple(table: Table, root: Path) -> tuple[tuple[str, ...], list[Annotated]]:
    """One answer a row; rows of one item and prompt are gathered."""
    asked = filled(table, "question")
    index = {text: place for place, text in enumerate(dict.fromkeys(asked))}
    prompts = _prompts(table)
    gathered: dict[tuple, tuple[list[int], list[bool]]] = {}
    rows = zip(table.items("item", root), prompts, asked, table.column("answer"), strict=True)
    for number, (item, prompt, question, answer) in enumerate(rows, start=1):
        if PROMPT in question and not prompt:
            raise ValueError(f"{table.path}: row {number} asks about {PROMPT} and has no prompt")
        questions, answers = gathered.setdefault((item, prompt), ([], []))
        questions.append(index[question])
        answers.append(_answer(table.path, number, answer))
    items = [
        Annotated(*key, tuple(questions), tuple(answers)) for key, (questions, answers) in gathered.items()
    ]
    return tuple(index), items


def _prompts(table: Table) -> list[str]:
    """Prompts, "" where a row has none."""
    if "prompt" not in table.columns:
        return [""] * len(table)
    return [prompt or "" for prompt in table.column("prompt")]


def _answer(path: Path, number: int, value) -> bool:
    spelled = str(value).strip().lower()
    if spelled not in _ANSWERS:
        raise ValueError(f"{path}: row {number} has the answer {value!r}; allowed: {', '.join(_ANSWERS)}")
    return _ANSWERS[spelled]


def split(annotations: Annotations, share: float, seed: int) -> tuple[Annotations, Annotations]:
    """The annotations without `share` of their items, and those; ValueError where one side would be empty."""
    order = np.random.default_rng(seed).permutation(len(annotations.items))
    count = round(share * len(order))
    if not 0 < count < len(order):
        raise ValueError(f"{annotations.name}: {share:.0%} of {len(order)} items cannot be held out")
    held = set(order[:count].tolist())
    sides = [
        replace(
            annotations,
            items=tuple(item for row, item in enumerate(annotations.items) if (row in held) == side),
        )
        for side in (False, True)
    ]
    return sides[0], sides[1]


def one_sided(annotations: Annotations) -> list[str]:
    """Questions that only ever got one kind of answer."""
    counts = annotations.counts()
    return [
        text
        for text, pair in zip(annotations.questions, counts, strict=True)
        if pair.sum() and not pair.all()
    ]


def balance(annotations: Annotations, rng: np.random.Generator) -> Annotations:
    """As many yes as no of every question, drawn anew at each call; the rest is left out.

    A question with one kind of answer only is left out; where that is all of them, ValueError.
    """
    least = annotations.counts().min(axis=1)
    if not least.any():
        raise ValueError(f"{annotations.name}: every question has one kind of answer only; nothing to learn")
    entries: dict[tuple[int, bool], list[tuple[int, int]]] = {}
    for row, item in enumerate(annotations.items):
        for place, key in enumerate(zip(item.questions, item.answers, strict=True)):
            entries.setdefault(key, []).append((row, place))
    kept: list[set[int]] = [set() for _ in annotations.items]
    for (question, _), places in sorted(entries.items()):
        for choice in rng.permutation(len(places))[: least[question]]:
            row, place = places[choice]
            kept[row].add(place)
    items = [
        _only(item, sorted(places)) for item, places in zip(annotations.items, kept, strict=True) if places
    ]
    return replace(annotations, items=tuple(items))


def _only(item: Annotated, places: Sequence[int]) -> Annotated:
    return replace(
        item,
        questions=tuple(item.questions[place] for place in places),
        answers=tuple(item.answers[place] for place in places),
    )
