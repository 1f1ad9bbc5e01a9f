"""Coding, gates, reduction and levels of a checklist, in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from rewards import Checklist, Feature, Question

QUESTIONS = (
    Question("has_cat", "Is there a cat?"),
    Question("cat_1", "Is the cat very good?", "content", "cat", 0.5, gate="has_cat"),
    Question("cat_2", "Is the cat good?", "content", "cat", 0.25, gate="has_cat"),
    Question("prompt", 'Does it show "[[prompt]]"?', "content", "prompt", 2.0),
    Question("clear", "Is it clear?", "quality", "clarity", 1.0),
    Question("spare", "Is it new?", "quality", "novelty", 0.0),
)
CHECKLIST = Checklist("cats", QUESTIONS)
FEATURE = Feature("alignment", "alignment", "alignment", 3.0, "vqascore")
#                       cat    1    2  prompt clear spare
YES_CAT = torch.tensor([0.9, 0.2, 0.8, 0.7, 0.1, 0.9])
NO_CAT = torch.tensor([0.1, 0.2, 0.8, 0.7, 0.1, 0.9])


def test_signed_answers_add_up_with_their_weights():
    scores = CHECKLIST.score(YES_CAT)
    assert scores.answers.tolist() == [1, -1, 1, 1, -1, 1]
    assert scores.level("question") == (("cat_1", "cat_2", "prompt", "clear"), scores.questions)
    assert scores.questions.tolist() == [-0.5, 0.25, 2.0, -1.0]
    assert scores.level("subdimension")[0] == ("cat", "prompt", "clarity")
    assert scores.subdimensions.tolist() == [-0.25, 2.0, -1.0]
    assert scores.level("dimension")[0] == ("content", "quality")
    assert scores.dimensions.tolist() == [1.75, -1.0]
    assert scores.total.item() == 0.75
    assert scores.level("total") == (("total",), scores.total[None])


def test_a_closed_gate_makes_its_questions_zero():
    assert CHECKLIST.gates == ("has_cat",)
    scores = CHECKLIST.score(NO_CAT)
    assert scores.answers.tolist() == [-1, 0, 0, 1, -1, 1]
    assert scores.total.item() == 2.0 - 1.0
    binary = replace(CHECKLIST, coding="binary").score(NO_CAT)
    assert binary.answers.tolist() == [0, 0, 0, 1, 0, 1]
    assert binary.total.item() == 2.0


def test_without_gates_codings_differ_by_a_constant_and_a_factor_of_two():
    free = Checklist("free", tuple(replace(question, gate=None) for question in QUESTIONS))
    p_yes = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    signed = free.score(p_yes).total
    binary = replace(free, coding="binary").score(p_yes).total
    torch.testing.assert_close(signed, 2 * binary - 3.75)  # 3.75: the sum of weights


def test_every_level_adds_up_to_the_total_for_sum_and_mean():
    checklist = replace(CHECKLIST, features=(FEATURE,))
    p_yes = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(0))
    features = torch.rand(4, 3, 1, generator=torch.Generator().manual_seed(1))
    for reduction, scale in (
        ("sum", 1),
        ("mean", 5),
    ):  # five columns carry weight: the feature and four questions
        scores = replace(checklist, reduction=reduction).score(p_yes, features)
        assert scores.total.shape == (4, 3)
        for level in ("question", "subdimension", "dimension", "total"):
            torch.testing.assert_close(scores.level(level)[1].sum(-1), scores.total)
        torch.testing.assert_close(scores.total * scale, checklist.score(p_yes, features).total)


def test_a_feature_enters_as_it_is():
    checklist = replace(CHECKLIST, features=(FEATURE,))
    scores = checklist.score(YES_CAT, torch.tensor([0.25]))
    assert scores.questions[0].item() == 3.0 * 0.25
    assert scores.total.item() == 0.75 + 0.75
    assert checklist.dimensions == ("alignment", "content", "quality")


def test_what_is_missing_stays_missing_up_to_the_total():
    scores = CHECKLIST.score(torch.tensor([[0.9, 0.2, 0.8, 0.7, math.nan, 0.9], YES_CAT.tolist()]))
    assert scores.total.isnan().tolist() == [True, False]
    assert scores.dimensions.isnan().tolist() == [[False, True], [False, False]]
    gate_missing = CHECKLIST.score(torch.tensor([math.nan, 0.2, 0.8, 0.7, 0.1, 0.9]))
    assert gate_missing.answers.isnan().tolist() == [True, True, True, False, False, False]
    without_feature = replace(CHECKLIST, features=(FEATURE,)).score(YES_CAT)
    assert without_feature.total.isnan() and not without_feature.dimensions[1:].isnan().any()


def test_an_even_chance_is_no():
    assert CHECKLIST.score(torch.full((6,), 0.5)).answers.tolist() == [-1, 0, 0, -1, -1, -1]


def test_prompts_are_put_in_word_for_word():
    prompt = 'a "cat"\nwith [[prompt]] and \\1 😀'
    assert CHECKLIST.ask(prompt)[3] == f'Does it show "{prompt}"?'
    assert CHECKLIST.ask(prompt)[4] == "Is it clear?"


def test_yaml_round_trip(tmp_path):
    path = tmp_path / "cats.yaml"
    checklist = replace(CHECKLIST, features=(FEATURE,), coding="binary", reduction="mean")
    newline = replace(QUESTIONS[4], text="Is it clear?\n")
    checklist = replace(checklist, questions=(*QUESTIONS[:4], newline, QUESTIONS[5]))
    checklist.to_yaml(path)
    assert Checklist.from_yaml(path) == checklist
    assert list(tmp_path.iterdir()) == [path]


def test_new_weights_by_id():
    changed = CHECKLIST.with_weights({"clear": 0.0, "spare": 1.5})
    assert changed.names("question") == ("cat_1", "cat_2", "prompt", "spare")
    with pytest.raises(ValueError, match="did you mean 'clear'"):
        CHECKLIST.with_weights({"cleer": 1.0})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "name: c\nquestions:\n  a: {text: q, dimension: d, subdimension: s, weight: -1}",
            "must be 0 or more",
        ),
        (
            "name: c\nquestions:\n  a: {text: q, dimension: d, subdimension: s, weight: .nan}",
            "must be 0 or more",
        ),
        (
            "name: c\nquestions:\n"
            "  here: {text: q}\n  a: {text: q, dimension: d, subdimension: s, weight: 1, gate: hree}",
            "did you mean 'here'",
        ),
        ("name: c\nquestions:\n  a: {text: q, weight: 1}", "needs a dimension"),
        ("name: c\nquestions:\n  a: {text: q}", "no question carries weight"),
        ("name: c\nquestions:\n  a: {text: q, wieght: 1}", "did you mean 'weight'"),
        (
            "name: c\nquestions:\n  a: {text: q, dimension: d, subdimension: s, weight: one}",
            "is not a number",
        ),
        ("name: c\nquestions:\n  a: {dimension: d, subdimension: s, weight: 1}", "needed text"),
        ("name: c\nquestions:\n  no: {text: q}", "needed an id"),
        ("name: c\ncodeing: signed\nquestions:\n  a: {text: q}", "did you mean 'coding'"),
        (
            "name: c\ncoding: signd\nquestions:\n  a: {text: q, dimension: d, subdimension: s, weight: 1}",
            "'signed'",
        ),
        ("questions:\n  a: {text: q}", "`name` is missing"),
        ("name: c\nquestions: [", "not valid YAML"),
        ("- a", "a checklist is a mapping"),
        (
            "name: c\nquestions:\n  a: {text: q, dimension: d, subdimension: s, weight: 1}\n"
            "  b: {text: q, dimension: e, subdimension: s, weight: 1}",
            "lies in 'd' and in 'e'",
        ),
        (
            "name: c\nquestions:\n  a: {text: q, dimension: d, subdimension: s, weight: 1}\n"
            "  b: {text: q, dimension: d, subdimension: s, weight: 1, gate: a}",
            "must have weight 0",
        ),
    ],
)
def test_bad_checklists_are_one_clear_line(content, words, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        Checklist.from_yaml(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_binary_file_is_no_checklist(tmp_path):
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(
        ValueError, match=f"^{tmp_path}/c.png: not a YAML file, since it is not text in UTF-8"
    ):
        Checklist.from_yaml(tmp_path / "c.png")


def test_wrong_shapes_and_levels_are_refused():
    with pytest.raises(ValueError, match=r"answers \[5\], needed \[..., 6\]"):
        CHECKLIST.score(torch.zeros(5))
    with pytest.raises(ValueError, match=r"features \[2\], needed \[1\]"):
        replace(CHECKLIST, features=(FEATURE,)).score(YES_CAT, torch.zeros(2))
    with pytest.raises(ValueError, match="did you mean 'dimension'"):
        CHECKLIST.score(YES_CAT).level("dimensions")
    with pytest.raises(ValueError, match="used twice"):
        Checklist("c", (QUESTIONS[4], QUESTIONS[4]))
