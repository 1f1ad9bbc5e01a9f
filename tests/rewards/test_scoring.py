import logging
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from rewards.checklist import Checklist, Feature, Question
from rewards.judges.base import Answers, Failure
from rewards.preferences import Preferences, read_preferences
from rewards.scoring import answer_differences, learnable, level_scores, score_pairs
from rewards.vision_reward import VisionReward

CHECKLIST = Checklist(
    "tiny",
    (
        Question("face", "Is there a face?"),
        Question("sharp", "Is it sharp?", "quality", "clarity", 1.0),
        Question("smile", "Is the face pleasant?", "fidelity", "face", 2.0, gate="face"),
        Question("calm", "Is it calm?"),
    ),
)


class PixelJudge:
    """Reads its answers off a picture: bit k of the first pixel's red value answers question k."""

    name, fingerprint, modality, frames = "pixels", "0", "image", "per_second"

    def __init__(self):
        self.asked = 0

    def answer(self, media, questions):
        self.asked += len(media)
        return [
            self._one(item.image.getpixel((0, 0))[0], len(asked))
            for item, asked in zip(media, questions, strict=True)
        ]

    def _one(self, value, count):
        if value == 255:
            return Failure("too bright to judge")
        yes = torch.tensor([value >> k & 1 for k in range(count)]).bool()
        return Answers(torch.where(yes, -0.1, -3.0), torch.where(yes, -3.0, -0.1))


def preferences(folder, values, verdicts):
    """Pairs of pictures whose red values are `values`."""
    for value in {value for pair in values for value in pair}:
        Image.new("RGB", (4, 4), (value, 0, 0)).save(folder / f"{value}.png")
    first, second = ([folder / f"{pair[side]}.png" for pair in values] for side in (0, 1))
    prompts = [f"p{row}" if row else "p1" for row in range(len(values))]
    return Preferences("pairs", prompts, first, second, np.array(verdicts), {}, [])


def test_an_item_that_occurs_twice_is_scored_once(tmp_path):
    judge = PixelJudge()
    pairs = preferences(tmp_path, [(0b0010, 0b0000), (0b0010, 0b0111)], [1, -1])
    cards = score_pairs(VisionReward(judge, CHECKLIST), pairs)
    assert judge.asked == 3 and cards[0][0] is cards[1][0]
    scores = level_scores(cards)
    # sharp ±1; smile 0 without a face, else ±2
    assert scores["total"][0].tolist() == [1, 1] and scores["total"][1].tolist() == [-1, 3]
    assert scores["quality"][1].tolist() == [-1, 1] and scores["fidelity"][1].tolist() == [0, 2]


def test_differences_are_preferred_minus_other_and_respect_the_gate(tmp_path):
    # smile bit set but no face: 0, not +1. Ties are left out
    pairs = preferences(tmp_path, [(0b0110, 0b0001), (0b1001, 0b0010), (0b0, 0b1)], [1, -1, 0])
    cards = score_pairs(VisionReward(PixelJudge(), CHECKLIST), pairs)
    differences, kept = answer_differences(cards, pairs, CHECKLIST)
    assert learnable(CHECKLIST) == ["sharp", "smile", "calm"] and kept.tolist() == [0, 1]
    # pair 0: (+1, 0, -1) - (-1, -1, -1); pair 1, second preferred: (+1, 0, -1) - (-1, -1, +1)
    assert differences.tolist() == [[2, 1, 0], [2, 1, -2]]


def test_features_are_columns_too():
    checklist = Checklist("f", CHECKLIST.questions, features=(Feature("fit", "a", "a", 1.0, "m"),))
    assert learnable(checklist) == ["fit", "sharp", "smile", "calm"]


def test_items_without_a_score_are_listed_and_their_pairs_left_out(tmp_path, caplog):
    pairs = preferences(tmp_path, [(0, 2)] * 3 + [(255, 2)], [1, 1, 1, 1])
    with caplog.at_level(logging.WARNING):
        cards = score_pairs(VisionReward(PixelJudge(), CHECKLIST), pairs, allow_missing=0.25)
    assert "1 of 4 rows cannot be used: too bright to judge" in caplog.text
    assert np.isnan(level_scores(cards)["total"][0]).tolist() == [False, False, False, True]
    assert answer_differences(cards, pairs, CHECKLIST)[1].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="too bright to judge; allowed: 5%"):
        score_pairs(VisionReward(PixelJudge(), CHECKLIST), pairs)


def test_a_broken_picture_inside_a_table_costs_its_pair_only(tmp_path, caplog):
    contents = []
    for value in (0b0010, 0b0000):
        Image.new("RGB", (4, 4), (value, 0, 0)).save(tmp_path / "picture.png")
        contents.append((tmp_path / "picture.png").read_bytes())
    sides = [contents, [b"no picture", contents[1]], [None, contents[1]]]
    rows = [{"prompt": "p", "item_1": one, "item_2": two, "preference": "1"} for one, two in sides]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    with caplog.at_level(logging.WARNING):
        pairs = read_preferences(tmp_path / "pairs.parquet")
        cards = score_pairs(VisionReward(PixelJudge(), CHECKLIST), pairs, allow_missing=0.7)
    assert cards[0][0].total == 1.0 and cards[1][0].missing and cards[2][0].missing
    assert "pairs.parquet (item_1, row 1 of group 0): not an image" in caplog.text
    assert "2 of 3 rows cannot be used" in caplog.text


def test_only_ties_leave_nothing_to_fit(tmp_path):
    pairs = preferences(tmp_path, [(0, 2)], [0])
    cards = score_pairs(VisionReward(PixelJudge(), CHECKLIST), pairs)
    with pytest.raises(ValueError, match="no pair has a preference"):
        answer_differences(cards, pairs, CHECKLIST)


def test_a_judge_that_says_no_to_everything_is_warned_of(tmp_path):
    pairs = preferences(tmp_path, [(0, 32), (64, 128)], [1, -1])
    longer = replace(CHECKLIST, questions=(*CHECKLIST.questions, Question("last", "Is it well?")))
    with pytest.warns(UserWarning, match="gave all 4 items no to everything"):
        score_pairs(VisionReward(PixelJudge(), longer), pairs)
