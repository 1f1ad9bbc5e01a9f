"""Judge + checklist: caching, failures, features, collapse; with a judge that counts what it is asked."""

import hashlib
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rewards import AnswerCache, Checklist, Feature, Question, VisionReward, load_media, load_reward
from rewards.alignment import JudgeAlignment
from rewards.judges.base import Answers, Failure

ROOT = Path(__file__).parents[2]
CHECKLIST = Checklist(
    "colours",
    (
        Question("here", "Is there anything?"),
        Question("red", "Is it [[prompt]]?", "colour", "hue", 1.0, gate="here"),
        Question("bright", "Is it bright?", "light", "brightness", 0.5),
    ),
)
PICTURES = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 120, 250)]


class CountingJudge:
    """Answers by a hash of picture and question; `mass` is what yes and no hold together."""

    name, modality, frames = "counting", "any", "per_second"

    def __init__(self, fingerprint="one", mass=0.9, always=None):
        self.fingerprint = fingerprint
        self.mass = mass
        self.always = always
        self.asked = []

    def answer(self, media, questions):
        results = []
        for item, asked in zip(media, questions, strict=True):
            self.asked += asked
            p_yes = torch.tensor([self.p_yes(item.digest, question) for question in asked])
            results.append(Answers((p_yes * self.mass).log(), ((1 - p_yes) * self.mass).log()))
        return results

    def p_yes(self, digest, question):
        number = int(hashlib.md5(f"{digest}{question}".encode()).hexdigest(), 16) % 1000
        return (number + 0.5) / 1000 if self.always is None else self.always


def test_scores_are_the_checklists(tmp_path):
    judge = CountingJudge()
    cards = VisionReward(judge, CHECKLIST).score(PICTURES, ["red", "dark", "red"])
    for picture, prompt, card in zip(PICTURES, ["red", "dark", "red"], cards, strict=True):
        digest = load_media(picture).digest
        p_yes = torch.tensor([judge.p_yes(digest, question) for question in CHECKLIST.ask(prompt)])
        expected = CHECKLIST.score(p_yes)
        assert card.total == expected.total.item()
        assert list(card.dimensions.values()) == expected.dimensions.tolist()
        assert card.p_yes == pytest.approx(dict(zip(CHECKLIST.ids, p_yes.tolist(), strict=True)), abs=1e-5)
        assert card.outside == pytest.approx(dict.fromkeys(CHECKLIST.ids, 0.1), abs=1e-5)
        assert card.missing is None and card.prompt == prompt


def test_one_item_gives_one_card():
    reward = VisionReward(CountingJudge(), CHECKLIST)
    assert reward.score(PICTURES[0], "red") == reward.score(PICTURES[:1], ["red"])[0]
    assert reward.score(PICTURES, "red") == reward.score(PICTURES, ["red"] * 3)
    with pytest.raises(ValueError, match="3 media and 1 prompts"):
        reward.score(PICTURES, ["red"])


def test_nothing_is_asked_twice(tmp_path):
    judge = CountingJudge()
    first = VisionReward(judge, CHECKLIST, AnswerCache(tmp_path)).score(PICTURES, ["red"] * 3)
    assert len(judge.asked) == 9
    second = VisionReward(judge, CHECKLIST, AnswerCache(tmp_path)).score(PICTURES[::-1], ["red"] * 3)
    assert len(judge.asked) == 9 and second[::-1] == first
    reweighed = CHECKLIST.with_weights({"red": 7.0})
    changed = VisionReward(judge, reweighed, AnswerCache(tmp_path)).score(PICTURES, ["red"] * 3)
    assert len(judge.asked) == 9  # new weights cost nothing
    assert changed[0].questions["red"] == 7 * first[0].questions["red"]
    VisionReward(judge, CHECKLIST, AnswerCache(tmp_path)).score(PICTURES, ["blue"] * 3)
    assert judge.asked[9:] == ["Is it blue?"] * 3  # only what the prompt changes
    other = CountingJudge("another")
    VisionReward(other, CHECKLIST, AnswerCache(tmp_path)).score(PICTURES, ["red"] * 3)
    assert len(other.asked) == 9


def test_failures_have_a_reason_and_no_numbers_and_are_not_kept(tmp_path):
    class Refuses(CountingJudge):
        refuse = True

        def answer(self, media, questions):
            results = super().answer(media, questions)
            return [Failure("does not fit"), *results[1:]] if self.refuse else results

    judge = Refuses()
    (tmp_path / "bad.png").write_text("no image")
    reward = VisionReward(judge, CHECKLIST, AnswerCache(tmp_path / "cache"))
    cards = reward.score([PICTURES[0], tmp_path / "bad.png", PICTURES[1]], ["red"] * 3)
    assert [card.missing and card.missing.split(": ")[-1][:12] for card in cards][0::2] == [
        "does not fit",
        None,
    ]
    assert "neither an image nor a video" in cards[1].missing
    for card in cards[:2]:
        assert math.isnan(card.total) and not card.dimensions and not card.p_yes
        assert card.to_dict()["levels"] == {}
    judge.refuse = False
    assert reward.score(PICTURES[0], "red").missing is None  # asked again, not remembered


def test_judges_of_one_kind_refuse_the_other():
    judge = CountingJudge()
    judge.modality = "video"
    (card,) = VisionReward(judge, CHECKLIST).score(PICTURES[:1], ["red"])
    assert card.missing == "image: image given, counting judges videos"


def test_features_are_measured_once_and_named(tmp_path):
    checklist = Checklist(
        "with",
        CHECKLIST.questions,
        features=(Feature("fit", "alignment", "alignment", 2.0, "clip-flant5-xxl"),),
    )
    with pytest.raises(
        ValueError, match="feature 'fit' of weight 2.000 needs a model, such as clip-flant5-xxl"
    ):
        VisionReward(CountingJudge(), checklist)
    judge = CountingJudge()
    reward = VisionReward(judge, checklist, AnswerCache(tmp_path), {"fit": JudgeAlignment(judge)})
    card = reward.score(PICTURES[0], "a red thing")
    question = 'Does this figure show "a red thing"? Please answer yes or no.'
    value = judge.p_yes(load_media(PICTURES[0]).digest, question)
    assert card.features["fit"] == pytest.approx(value, abs=1e-6)
    assert card.questions["fit"] == pytest.approx(2 * value, abs=1e-6)
    assert card.notes == ("fit by counting, not clip-flant5-xxl: not the release's score",)
    count = len(judge.asked)
    assert reward.score(PICTURES[0], "a red thing") == card and len(judge.asked) == count


def test_a_missing_feature_is_a_missing_score():
    class Broken(JudgeAlignment):
        def measure(self, media, prompts):
            return [Failure("too large")] * len(media)

    checklist = Checklist("with", CHECKLIST.questions, features=(Feature("fit", "a", "a", 2.0, "counting"),))
    judge = CountingJudge()
    card = VisionReward(judge, checklist, features={"fit": Broken(judge)}).score(PICTURES[0], "red")
    assert card.missing == "too large" and math.isnan(card.total)


def test_a_feature_that_is_not_a_number_is_a_missing_score_and_not_kept(tmp_path):
    class Overflown(JudgeAlignment):
        def measure(self, media, prompts):
            return [math.nan] * len(media)

    checklist = Checklist("with", CHECKLIST.questions, features=(Feature("fit", "a", "a", 2.0, "counting"),))
    judge = CountingJudge()
    cache = AnswerCache(tmp_path)
    card = VisionReward(judge, checklist, cache, {"fit": Overflown(judge)}).score(PICTURES[0], "red")
    assert card.missing == "image: counting gave NaN" and not card.features
    mended = VisionReward(judge, checklist, cache, {"fit": JudgeAlignment(judge)}).score(PICTURES[0], "red")
    assert mended.missing is None


def test_a_judge_that_says_neither_is_an_error():
    reward = VisionReward(CountingJudge(mass=0.3), CHECKLIST)
    with pytest.raises(ValueError) as caught:
        reward.score(PICTURES, ["red"] * 3)
    assert "yes and no hold 30.0% of the probability" in str(caught.value)
    assert "counting" in str(caught.value) and "template" in str(caught.value)
    assert VisionReward(CountingJudge(mass=0.3), CHECKLIST, min_mass=0.2).score(PICTURES[0], "red").total


def test_silence_is_told_early_and_is_an_error_where_no_item_has_answers_in_any_order():
    class Hesitant(CountingJudge):
        def answer(self, media, questions):
            self.mass = 0.9 if media[0].digest == load_media(PICTURES[0]).digest else 0.3
            return super().answer(media, questions)

    for pictures, silent in ((PICTURES, [False, True, True]), (PICTURES[::-1], [True, True, False])):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cards = VisionReward(Hesitant(), CHECKLIST, chunk=1).score(pictures, "red")
        assert [card.missing is not None for card in cards] == silent
        told = [str(entry.message) for entry in caught if "no item has answers so far" in str(entry.message)]
        assert len(told) == silent[0]


def test_the_judge_gets_as_many_items_together_as_batch_size_says(tmp_path, tiny_vlm, pictures):
    CHECKLIST.to_yaml(tmp_path / "checklist.yaml")
    settings = {"judge": tiny_vlm("llava"), "checklist": tmp_path / "checklist.yaml", "min_mass": 0}
    for given, expected in ({}, [16, 4]), ({"batch_size": 20}, [20]), ({"batch_size": 15}, [15, 5]):
        reward = load_reward({key: str(value) for key, value in settings.items()} | {"device": "cpu"} | given)
        together, answer = [], reward.judge.answer
        reward.judge.answer = lambda media, asked: together.append(len(media)) or answer(media, asked)  # noqa: B023
        reward.score([Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(20)], "red")
        assert together == expected
        assert reward.judge.batch_size == given.get("batch_size", 16)


def test_what_a_checklist_is_not_about_is_missing(tmp_path):
    replace(CHECKLIST, modality="video").to_yaml(tmp_path / "clips.yaml")
    clips = Checklist.from_yaml(tmp_path / "clips.yaml")
    assert clips.modality == "video"
    clip = np.zeros((3, 8, 8, 3), np.uint8)
    card, scored = VisionReward(CountingJudge(), clips).score([PICTURES[0], clip], "red")
    assert card.missing == "image: image given, checklist colours asks about videos"
    assert scored.missing is None

    class OfImages(CountingJudge):
        modality = "image"

    with pytest.raises(ValueError, match="checklist colours asks about videos, counting judges images"):
        VisionReward(OfImages(), clips)
    with pytest.raises(ValueError, match="modality 'film' is unknown; allowed: image, video"):
        replace(CHECKLIST, modality="film")


def test_all_answers_alike_is_a_warning():
    more = [Question(f"more_{number}", f"More of {number}?") for number in range(3)]
    checklist = Checklist("six", (*CHECKLIST.questions, *more))
    for always, words in ((0.2, "no to everything"), (0.8, "yes to everything")):
        reward = VisionReward(CountingJudge(always=always), checklist)
        with pytest.warns(UserWarning, match=f"counting gave all 3 items {words}"):
            reward.score(PICTURES, ["red"] * 3)

    class Constant(CountingJudge):
        def p_yes(self, digest, question):
            return float(digest == load_media(PICTURES[0]).digest)

    with pytest.warns(UserWarning, match="gave all 3 items no to everything or yes to everything"):
        VisionReward(Constant(), checklist).score(PICTURES, "red")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VisionReward(CountingJudge(), checklist).score(PICTURES, ["red"] * 3)
        VisionReward(CountingJudge(always=0.2), CHECKLIST).score(PICTURES, ["red"] * 3)  # three may agree
        reward.score(PICTURES[:1], ["red"])  # a single item says nothing by six answers
        reward.score(PICTURES[:1] * 2, ["red"] * 2)  # nor does one item twice
    longer = Checklist("ten", (*checklist.questions, *(Question(f"q{n}", f"Is it {n}?") for n in range(4))))
    with pytest.warns(UserWarning, match="counting gave the item no to everything"):
        VisionReward(CountingJudge(always=0.2), longer).score(PICTURES[0], "red")


def test_scores_do_not_depend_on_chunks_or_order():
    cards = VisionReward(CountingJudge(), CHECKLIST, chunk=1).score(PICTURES, ["a", "b", "c"])
    assert cards == VisionReward(CountingJudge(), CHECKLIST).score(PICTURES, ["a", "b", "c"])
    assert cards == VisionReward(CountingJudge(), CHECKLIST).score(PICTURES[::-1], ["c", "b", "a"])[::-1]


FILL = """
import sys
from rewards.cache import AnswerCache
cache = AnswerCache(sys.argv[1])
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 20):
    cache.put([(AnswerCache.key("d", str(number), "f"), (float(number), 1.0))])
"""


def test_cache_is_shared_by_processes(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path), str(start)], cwd=ROOT)
        for start in (0, 10, 20)
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    keys = [AnswerCache.key("d", str(number), "f") for number in range(50)]
    found = AnswerCache(tmp_path).get(keys * 20)  # more keys than one query holds
    assert [found.get(key) for key in keys] == [(float(n), 1.0) for n in range(40)] + [None] * 10


def test_a_damaged_cache_is_one_line(tmp_path):
    (tmp_path / "answers.sqlite").write_text("not a database, and long enough to be read as one " * 20)
    with pytest.raises(OSError, match="score cache .*answers.sqlite: file is not a database"):
        AnswerCache(tmp_path)


def test_reward_from_a_file(tmp_path, tiny_vlm, pictures):
    CHECKLIST.to_yaml(tmp_path / "checklist.yaml")
    settings = tmp_path / "reward.yaml"
    lines = (
        f"judge: {tiny_vlm('llava')}\nchecklist: {tmp_path / 'checklist.yaml'}\ndevice: cpu\nmin_mass: 0\n"
    )
    settings.write_text(lines + f"cache: {tmp_path / 'cache'}\n")
    reward = load_reward(settings)
    card = reward.score(pictures[0], "a cat")
    assert card.missing is None and set(card.dimensions) == {"colour", "light"}
    settings.write_text(lines.replace("device", "devise"))
    with pytest.raises(ValueError, match="did you mean 'device'"):
        load_reward(settings)
    for line, words in (
        ("features: {fit: {kind: judge}}", "features 'fit' is unknown"),
        ("batch_size: many", "batch_size"),
        ("kind: cogvlm", "did you mean 'cogvlm2'"),
        ("frames: all", "allowed: per_second, uniform:n"),
        ("dtype: half", "allowed: float32, bfloat16, float16"),
    ):
        settings.write_text(f"{lines}{line}\n")
        with pytest.raises(ValueError, match=words) as caught:
            load_reward(settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="`checklist` is missing"):
        load_reward({"judge": "x"})
    with pytest.raises(ValueError, match="no such file"):
        load_reward(tmp_path / "absent.yaml")
