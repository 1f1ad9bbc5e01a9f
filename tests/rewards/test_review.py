from pathlib import Path

import numpy as np
import pytest

from rewards.checklist import Checklist, Question
from rewards.review import review, review_answers
from rewards.templates import TEMPLATES, template

RELEASE = Path(__file__).parents[3] / "shared" / "visionreward"


def checklist(*texts, **fields):
    questions = [Question("fits", 'Does it fit "[[prompt]]"?', "alignment", "alignment", 1.0)]
    questions += [Question(f"q{index}", text, "d", "s", 1.0) for index, text in enumerate(texts)]
    return Checklist("mine", tuple(questions), **fields)


def found(checklist):
    return {finding.question: finding.text for finding in review(checklist)}


def test_a_sound_checklist_has_nothing_to_mend():
    assert found(checklist("Is the image sharp?", "Does the image avoid errors?")) == {}


def test_the_same_question_in_other_words_of_case_and_article():
    assert "the same as 'q0'" in found(checklist("Is the image sharp?", "is an image  sharp ?"))["q1"]


@pytest.mark.parametrize(
    "text", ["Is the image blurry?", "Are there obvious errors?", "Is a watermark visible?"]
)
def test_questions_whose_yes_is_bad(text):
    assert '"yes" seems bad' in found(checklist(text))["q0"]


@pytest.mark.parametrize(
    "text", ["Is the image not blurry?", "Is the video free of flicker?", "Is it without flaws?"]
)
def test_negated_faults_are_good(text):
    assert found(checklist(text)) == {}


@pytest.mark.parametrize("file", ["image/VisionReward_image_qa.txt", "video/VisionReward_video_qa.txt"])
def test_the_releases_questions_pass(file):
    if not (RELEASE / file).is_file():
        pytest.skip("the release's question lists are not here")
    lines = (RELEASE / file).read_text().splitlines()
    assert found(checklist(*(line.strip() for line in lines))) == {}


def test_a_gate_may_ask_for_a_fault_and_an_unused_question_is_found():
    questions = (
        Question("letters", "Are there any garbled letters?"),
        Question("legible", "Are the letters legible?", "d", "s", 1.0, gate="letters"),
        Question("idle", "Is it pleasant?"),
        Question("fits", "Does it fit [[prompt]]?", "a", "a", 1.0),
    )
    assert found(Checklist("mine", questions)) == {
        "idle": "is asked for nothing: it has no weight and gates no other question"
    }


def test_a_checklist_that_never_mentions_the_prompt():
    alone = Checklist("mine", (Question("sharp", "Is it sharp?", "d", "s", 1.0),))
    assert "[[prompt]]" in found(alone)[""]


def test_answers_on_a_sample():
    mine = checklist("Is it sharp?", "Is it bright?")
    p_yes = np.array([[0.9, 0.1, 0.7], [0.2, 0.3, 0.8], [np.nan, 0.9, 0.1]])  # the third item has no score
    texts = {finding.question: finding.text for finding in review_answers(mine, p_yes)}
    assert texts == {"q0": "never answered yes on 2 items", "q1": "never answered no on 2 items"}


def test_a_judge_that_says_no_to_everything_is_found_first():
    findings = review_answers(checklist(), np.full((4, 1), 0.2))
    assert "all 4 items got no to everything" in findings[0].text


def test_answers_of_another_checklist_are_refused():
    with pytest.raises(ValueError, match=r"\[4, 3\], needed \[items, 1\]"):
        review_answers(checklist(), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="no item of the sample"):
        review_answers(checklist(), np.full((2, 1), np.nan))


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_are_sound_checklists(tmp_path, kind):
    path = tmp_path / "mine.yaml"
    path.write_text(template(kind, "mine"))
    loaded = Checklist.from_yaml(path)
    assert (loaded.name, loaded.modality) == ("mine", kind)
    assert review(loaded) == [] and len(loaded.dimensions) >= 4
