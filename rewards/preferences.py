"""Human preferences between two items for one prompt, in the layouts in which people publish them.

VisionRewardDB-Video    prompt, video1_path, video2_path, standard_answer
GenAI-Bench             prompt, left_image, right_image (or left_video, right_video), vote_type
Pick-a-Pic              caption, jpg_0, jpg_1, label_0, label_1, has_label
HPDv2 test, train       prompt, image_path, rank; prompt, file_path, human_preference
plain                   prompt, item_1, item_2, preference; or prompt, winner, loser
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rewards.tables import Item, Table, check_missing, filled, media_root, on_disk, read_table

FIRST, SECOND, TIE = 1, -1, 0
VERDICTS = {"1": FIRST, "2": SECOND, "tie": TIE}
_SPELLINGS = {
    FIRST: "1 first a left video1 video_1 image1 image_1 item1 item_1 leftvote winner",
    SECOND: "2 second b right video2 video_2 image2 image_2 item2 item_2 rightvote",
    TIE: "0 tie same equal draw both neither tievote bothbad_vote",
}
SPELLINGS = {spelling: verdict for verdict, known in _SPELLINGS.items() for spelling in known.split()}


class Layout(NamedTuple):
    """Which columns of a table say what of a pair.

    `verdict` names a column that says in a word which item is preferred; or two with a number for each item,
    the larger for the preferred one; or none, where the first item always is.
    """

    prompt: str
    first: str
    second: str
    verdict: tuple[str, ...]

    @property
    def columns(self) -> frozenset[str]:
        """All columns that a table of this layout has; it may have others."""
        return frozenset((self.prompt, self.first, self.second, *self.verdict))


PICK_A_PIC = Layout("caption", "jpg_0", "jpg_1", ("label_0", "label_1"))
LABELLED = "has_label"  # of Pick-a-Pic: rows where it is false hold no pair
WINNER_LOSER = Layout("prompt", "winner", "loser", ())
VISIONREWARD_VIDEO = Layout("prompt", "video1_path", "video2_path", ("standard_answer",))
GENAI_BENCH = (
    Layout("prompt", "left_image", "right_image", ("vote_type",)),
    Layout("prompt", "left_video", "right_video", ("vote_type",)),
)
PLAIN = Layout("prompt", "item_1", "item_2", ("preference",))
LAYOUTS = (VISIONREWARD_VIDEO, *GENAI_BENCH, PLAIN, PICK_A_PIC, WINNER_LOSER)


def layout_of(columns: Collection[str], known: Sequence[Layout] = LAYOUTS) -> Layout | None:
    """The first of the `known` layouts that a table with these columns has; None: it has none."""
    return next((layout for layout in known if layout.columns <= set(columns)), None)


@dataclass(frozen=True)
class Preferences:
    """M pairs of items with a human verdict each.

    verdicts: [M] 1 where the first item is preferred, -1 the second, 0 a tie.
    spellings: what was read as 1, 2 and tie: how often each spelling of them was seen.
    missing: items that are not on disk; their pairs are left out.
    """

    name: str
    prompts: list[str]
    first: list[Item]
    second: list[Item]
    verdicts: np.ndarray
    spellings: dict[str, dict[str, int]]
    missing: list[str]

    def __len__(self):
        return len(self.prompts)

    @property
    def groups(self) -> np.ndarray:
        """Group ids [M]: pairs of one prompt belong together."""
        return np.unique(np.array(self.prompts), return_inverse=True)[1]

    @property
    def reading(self) -> str:
        """How the verdicts were read, in one line."""
        names = {"1": "first item better", "2": "second item better", "tie": "tie"}
        read = [f"{names[meaning]}: {_counts(seen, seen)}" for meaning, seen in self.spellings.items()]
        return f"verdicts read as {'; '.join(read)}"


class _Pair(NamedTuple):
    prompt: str
    first: Item
    second: Item
    answer: Any  # as spelled in the file


def read_preferences(
    path: str | Path,
    media: str | Path | None = None,
    answers: Mapping[str, str] | None = None,
    allow_missing: float = 0.05,
) -> Preferences:
    """Preferences of a file or folder; the layout is told by its columns.

    media: folder that relative paths start from (default: where the file lies).
    answers: what further spellings of a verdict mean: 1, 2 or tie.
    Pairs with an item that is not on disk are listed and left out, up to the share `allow_missing` of all
    pairs; more of them, or a spelling that is not known, is a ValueError.
    """
    path = Path(path)
    pairs = _read_pairs(read_table(path), media_root(path, media))
    if not pairs:
        raise ValueError(f"{path}: no pair in it")
    verdicts, spellings = read_verdicts(str(path), [pair.answer for pair in pairs], answers)
    lost = [[str(item) for item in (pair.first, pair.second) if not on_disk(item)] for pair in pairs]
    keep = [index for index, items in enumerate(lost) if not items]
    missing = sorted({item for items in lost for item in items})
    reasons = [f"{item} is not there" for item in missing]
    check_missing(str(path), reasons, len(pairs) - len(keep), len(pairs), allow_missing)
    return Preferences(
        name=path.stem,
        prompts=[pairs[index].prompt for index in keep],
        first=[pairs[index].first for index in keep],
        second=[pairs[index].second for index in keep],
        verdicts=verdicts[keep],
        spellings=spellings,
        missing=missing,
    )


def read_verdicts(where: str, values: Sequence, answers: Mapping[str, str] | None = None):
    """Verdicts [M], and by meaning (1, 2, tie) how often each spelling was seen; a spelling that is not known
    is a ValueError.
    """
    for spelling, meaning in (answers or {}).items():
        if meaning not in VERDICTS:
            raise ValueError(f"answer {spelling}={meaning}: allowed meanings: {', '.join(VERDICTS)}")
    known = SPELLINGS | {_spelling(spelling): VERDICTS[answers[spelling]] for spelling in answers or {}}
    spelled = [_spelling(value) for value in values]
    seen = dict(Counter(spelled).most_common())
    unknown = [spelling for spelling in seen if spelling not in known]
    if unknown:
        raise ValueError(
            f"{where}: verdicts with unknown meaning: {_counts(seen, unknown)}; "
            f"known ones: {_counts(seen, [s for s in seen if s in known]) or 'none'}; "
            f"say what they mean (--answer), such as {unknown[0]}=1, {unknown[0]}=2 or {unknown[0]}=tie"
        )
    if set(seen) == {"0", "1"} and not answers:
        raise ValueError(
            f"{where}: verdicts are {_counts(seen, seen)}, never 2: is 0 a tie or the first item? "
            "Say what they mean (--answer), such as 0=1 and 1=2"
        )
    read = {
        meaning: {spelling: count for spelling, count in seen.items() if known[spelling] == verdict}
        for meaning, verdict in VERDICTS.items()
    }
    read = {meaning: spellings for meaning, spellings in read.items() if spellings}
    return np.array([known[spelling] for spelling in spelled]), read


def one_side(verdicts: np.ndarray) -> str | None:
    """What to check where people always prefer the same side; None where both sides win."""
    if len(set(verdicts[verdicts != TIE].tolist())) != 1:
        return None
    side = "first" if verdicts.max() > 0 else "second"
    return f"the {side} item is preferred in every pair: check that the verdicts were read as meant"


def _spelling(value) -> str:
    """One spelling for " Tie " and "tie", for 1, 1.0 and "1"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


def _counts(seen: Mapping[str, int], spellings: Sequence[str], most: int = 8) -> str:
    listed = ", ".join(f"{spelling!r} ({seen[spelling]}×)" for spelling in list(spellings)[:most])
    return listed + (f" and {len(spellings) - most} more" if len(spellings) > most else "")


def _read_pairs(table: Table, root: Path) -> list[_Pair]:
    if layout := layout_of(table.columns):
        return _two_items(table, root, layout)
    match table.columns:
        case c if {"prompt", "image_path", "rank"} <= c:
            return _hpdv2_ranked(table, root)
        case c if {"prompt", "file_path", "human_preference"} <= c:
            return _hpdv2_chosen(table, root)
    raise ValueError(
        f"{table.path}: columns {', '.join(sorted(table.columns))}; "
        "needed: prompt, item_1, item_2, preference, or those of a published layout"
    )


def _two_items(table: Table, root: Path, layout: Layout) -> list[_Pair]:
    """Of Pick-a-Pic a row without a label is no pair; its labels are one half each for a tie."""
    prompts, answers = filled(table, layout.prompt), [table.column(name) for name in layout.verdict]
    match answers:
        case [words]:
            said = words
        case [ours, theirs]:
            said = [_larger(one, other) for one, other in zip(ours, theirs, strict=True)]
        case _:
            said = ["winner"] * len(prompts)
    items = table.items(layout.first, root), table.items(layout.second, root)
    pairs = [_Pair(*values) for values in zip(prompts, *items, said, strict=True)]
    if layout != PICK_A_PIC or LABELLED not in table.columns:
        return pairs
    return [pair for pair, labelled in zip(pairs, table.column(LABELLED), strict=True) if labelled]


def _hpdv2_ranked(table, root) -> list[_Pair]:
    """Several pictures a prompt with a rank each, the best has the lowest; every two of them are a pair."""
    return [
        _Pair(prompt, root / paths[i], root / paths[j], _larger(ranks[j], ranks[i]))
        for prompt, paths, ranks in _hpdv2(table, "image_path", "rank")
        for i in range(len(paths))
        for j in range(i + 1, len(paths))
    ]


def _hpdv2_chosen(table, root) -> list[_Pair]:
    """Two pictures a prompt; `human_preference` is 1 for the preferred one."""
    return [
        _Pair(prompt, root / paths[0], root / paths[1], _larger(*chosen))
        for prompt, paths, chosen in _hpdv2(table, "file_path", "human_preference")
    ]


def _hpdv2(table, paths: str, verdicts: str):
    for row in zip(filled(table, "prompt"), table.column(paths), table.column(verdicts), strict=True):
        if len(row[1]) != len(row[2]):
            raise ValueError(
                f"{table.path}: {row[0]!r} has {len(row[1])} {paths} and {len(row[2])} {verdicts}"
            )
        yield row


def _larger(first: float, second: float) -> str:
    return "first" if first > second else "second" if second > first else "tie"
