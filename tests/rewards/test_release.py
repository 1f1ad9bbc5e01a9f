"""The release's checklists: golden facts, trees and policies. Needs the release's files."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from rewards import Checklist, load_checklist
from rewards.fetch import RELEASES, cache_folder, fetch
from rewards.release import release_modality

RELEASE = Path(__file__).parents[3] / "shared" / "visionreward"
needs_release = pytest.mark.skipif(not RELEASE.is_dir(), reason="the release's files are not here")


def read(modality, **options) -> Checklist:
    return Checklist.from_release(RELEASE / modality, modality, **options)


def weight_by_dimension(checklist) -> dict[str, float]:
    return {
        name: round(sum(c.weight for c in checklist.columns if c.dimension == name), 3)
        for name in checklist.dimensions
    }


@needs_release
def test_video_all_no_is_the_score_that_users_report():
    checklist = read("video")
    assert len(checklist.questions) == 29 and checklist.reduction == "mean" and not checklist.gates
    assert sum(question.weight for question in checklist.questions) == pytest.approx(6.27717, abs=5e-6)
    no = checklist.score(torch.zeros(29)).total.item()
    assert no == pytest.approx(-0.2164542276, abs=1e-10)  # -6.27717 / 29
    assert checklist.score(torch.ones(29)).total.item() == -no


@needs_release
def test_full_image_weights_without_zeros_are_the_selected_ones():
    full = json.loads((RELEASE / "image" / "weight.json").read_text())["coef"]
    select = json.loads((RELEASE / "image" / "weight_select.json").read_text())["coef"]
    assert len(full) == 55 and [weight for weight in full if weight] == select
    by_line = {q.text: q.weight for q in read("image", questions="full").questions if q.weight}
    assert by_line == {q.text: q.weight for q in read("image").questions if q.weight}


@needs_release
def test_selected_lines_are_the_full_lists_lines():
    for modality in ("image", "video"):
        full = {q.id: q for q in read(modality, questions="full", policy="strict").questions}
        for question in read(modality, policy="strict").questions:
            assert question == full[question.id]


@needs_release
def test_weight_of_every_dimension():
    assert weight_by_dimension(read("image")) == {
        "alignment": 2.354,
        "composition": 1.264,
        "quality": 0.704,
        "fidelity": 0.490,
        "safety_emotion": 0.079,
    }
    assert weight_by_dimension(read("video")) == {
        "alignment": 2.349,
        "composition": 0.060,
        "stability": 0.420,
        "quality": 0.819,
        "preservation": 0.865,
        "dynamic": 0.163,
        "fidelity": 1.207,
        "physics": 0.394,
    }


@needs_release
def test_subdimensions_are_the_papers():
    """18 of images and 20 of videos, in 5 and 9 dimensions."""
    image = {q.subdimension for q in read("image", questions="full").questions} | {"alignment"}
    video = {q.subdimension for q in read("video", questions="full").questions}
    assert len(image) == 18 and len(video) == 20
    dimensions = {q.dimension for q in read("video", questions="full").questions}
    assert len(dimensions) == 9


@needs_release
@pytest.mark.parametrize("modality", ["image", "video"])
def test_every_line_lies_in_a_subdimension_it_speaks_of(modality):
    """A word of each sub-dimension's lines; would catch a table that slipped by a line."""
    words = {
        "symmetry": "symmetr",
        "object_pairing": "coordinated",
        "main_object": "main subject",
        "background": "background",
        "color": "color",
        "color_brightness": "color",
        "color_aesthetic": "color",
        "lighting_distinction": "lighting",
        "lighting_aesthetic": "lighting",
        "lighting_accuracy": "lighting",
        "emotion": "emotional",
        "body": "body",
        "face": "face",
        "hands": "hands",
        "focus": "focus",
        "camera_movement": "camera movement",
        "shape_at_beginning": "beginning",
        "shape_throughout": "throughout",
        "object_motion": "motion",
        "camera_motion": "camera motion",
        "movement_smoothness": "smoothness",
        "movement_reality": "realis",
        "image_quality_stability": "image quality",
        "camera_stability": "camera",
        "letters": "letters",
        "safety": "harm",
        "physics_law": "physic",
        "composition": "composition",
        "alignment": "[[prompt]]",
    }
    checked = 0
    for question in read(modality, questions="full").questions:
        word = words.get(question.subdimension)
        if word and not (question.subdimension == "safety" and "safe" in question.text):
            assert word in question.text, question
            checked += 1
    assert checked > 35


@needs_release
def test_image_gates_of_the_release():
    """Without a body, answers 22-24 and 28, 29 become 0; without a face 25, 26; without hands 27."""
    checklist = read("image")
    yes = torch.ones(30)
    for gate, gated in ((0, [22, 23, 24, 28, 29]), (1, [25, 26]), (2, [27])):
        answers = yes.clone()
        answers[gate] = 0
        coded = checklist.code(answers)
        assert [column for column in range(30) if coded[column] == 0] == gated


@needs_release
def test_image_score_as_released():
    """Sum of weight * feature over alignment (0.5) and 27 answers (all yes, 1)."""
    checklist = read("image")
    weights = json.loads((RELEASE / "image" / "weight_select.json").read_text())["coef"]
    scores = checklist.score(torch.ones(30), torch.tensor([0.5]))
    assert scores.total.item() == pytest.approx(0.5 * weights[0] + sum(weights[1:]), abs=1e-12)
    assert checklist.score(torch.ones(30)).total.isnan()  # without alignment there is no score


@needs_release
def test_strict_mends_what_release_keeps():
    release, strict = read("image"), read("image", policy="strict")
    no_body = torch.ones(30)
    no_body[0] = 0
    safety = [q.id for q in release.questions if q.subdimension == "safety"]
    for checklist, value in ((release, 0), (strict, 1)):
        coded = dict(zip(checklist.ids, checklist.code(no_body).tolist(), strict=True))
        assert [coded[name] for name in safety] == [value] * 2
    assert read("video").questions[0].text.endswith("?\n")
    assert all(not q.text.endswith("\n") for q in read("video", policy="strict").questions)
    video = read("video", policy="strict")
    assert video.gates == ("has_lighting", "has_letters") and len(video.columns) == 27
    no_letters = torch.ones(29)
    no_letters[27] = 0
    assert video.code(no_letters)[26] == 0  # "are all the letters correct" counts nothing without letters
    full = read("image", questions="full", policy="strict")
    assert full.gates == ("has_body", "has_face", "has_hands", "has_background", "has_lighting")


@needs_release
def test_full_and_selected_lists_score_alike():
    generator = torch.Generator().manual_seed(0)
    for modality in ("image", "video"):
        full, select = read(modality, questions="full"), read(modality)
        p_yes = torch.rand(20, len(full.questions), generator=generator)
        columns = [full.ids.index(name) for name in select.ids]
        features = torch.rand(20, len(full.features), generator=generator)
        torch.testing.assert_close(
            full.score(p_yes, features).total, select.score(p_yes[:, columns], features).total
        )


@needs_release
def test_fetch_from_a_folder_checks_every_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="mpo checklist fetch visionreward-video"):
        load_checklist("visionreward-video")
    for name, modality in (("visionreward-video", "video"), ("visionreward-image", "image")):
        folder = fetch(name, RELEASE)
        assert folder == cache_folder(name) and release_modality(folder) == modality
        assert load_checklist(name).questions == read(modality).questions
        for place, digest in RELEASES[name].items():
            assert hashlib.sha256((folder / Path(place).name).read_bytes()).hexdigest() == digest
    altered = tmp_path / "altered"
    shutil.copytree(RELEASE / "video", altered)
    (altered / "weight.json").write_text("[1.0]")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        fetch("visionreward-video", altered)
    assert (
        load_checklist("visionreward-video").questions == read("video").questions
    )  # the good one still lies there
    with pytest.raises(ValueError, match="no VisionReward_video_qa.txt in it"):
        fetch("visionreward-video", RELEASE / "image")


@needs_release
def test_broken_files_are_one_clear_line(tmp_path):
    folder = tmp_path / "video"
    shutil.copytree(RELEASE / "video", folder)
    lines = (folder / "VisionReward_video_qa_select.txt").read_text().splitlines(keepends=True)
    (folder / "VisionReward_video_qa_select.txt").write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="28 questions in the select list, needed 29"):
        Checklist.from_release(folder, "video")
    (folder / "VisionReward_video_qa_select.txt").write_text("".join(lines))
    for content, words in (
        ("[1.0]", "1 weights, needed 29"),
        ("{", "not valid JSON"),
        ('"a"', "a list of weights"),
    ):
        (folder / "weight.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            Checklist.from_release(folder, "video")
    with pytest.raises(ValueError, match="policy 'strickt' is unknown; did you mean 'strict'"):
        load_checklist(RELEASE / "image", policy="strickt")
    with pytest.raises(ValueError, match="a checklist folder holds"):
        load_checklist(tmp_path)
