import io
import json
import logging

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from rewards.annotations import Annotated, Annotations, balance, one_sided, read_annotations, split
from rewards.media import load_media
from rewards.tables import Embedded


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "meta_qa_en.txt"
    path.write_text("Is it clear?\nIs it rich?\nIs there a face?")
    return path


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_visionreward_images_with_their_mask(tmp_path, questions):
    rows = [
        {"image": picture(), "prompt": "p", "meta_result": [1, 0, 1], "meta_mask": [1, 1, 0]},
        {"image": picture(), "prompt": "q", "meta_result": [0, 0, 0], "meta_mask": [0, 0, 1]},
    ]
    found = read_annotations(write(tmp_path / "train.parquet", rows), questions)
    assert found.questions == ("Is it clear?", "Is it rich?", "Is there a face?")
    assert [(item.questions, item.answers) for item in found.items] == [
        ((0, 1), (True, False)),
        ((2,), (False,)),
    ]
    assert isinstance(found.items[0].item, Embedded)
    assert load_media(found.items[0].item).image.getpixel((0, 0)) == (1, 2, 3)
    assert found.counts().tolist() == [[0, 1], [1, 0], [1, 0]] and len(found) == 3


def test_visionreward_videos_are_paths(tmp_path, questions):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"x")
    row = {"video_path": "a.mp4", "prompt": "p", "meta_result": [1, 1, 1], "meta_mask": [1, 0, 0]}
    found = read_annotations(write(tmp_path / "v.parquet", [row]), questions, media=tmp_path / "clips")
    assert found.items[0].item == tmp_path / "clips" / "a.mp4"


def test_a_question_file_of_another_length_is_an_error(tmp_path, questions):
    row = {"image": picture(), "prompt": "p", "meta_result": [1, 0], "meta_mask": [1, 1]}
    path = write(tmp_path / "train.parquet", [row])
    with pytest.raises(
        ValueError, match="row 1 has 2 answers and a mask of 2, but .*meta_qa_en.txt has 3 questions"
    ):
        read_annotations(path, questions)
    with pytest.raises(ValueError, match="needs its question file"):
        read_annotations(path)


def simple(item, question, answer, **more):
    return {"item": item, "question": question, "answer": answer, **more}


def test_simple_rows_are_gathered_by_item_and_prompt(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    rows = [
        simple("a.png", "Is it clear?", "Yes", prompt="cat"),
        simple("a.png", 'Is it "[[prompt]]"?', 0, prompt="dog"),
        simple("a.png", 'Is it "[[prompt]]"?', True, prompt="cat"),
        simple("a.png", "Is it clear?", "no", prompt=None),
    ]
    found = read_annotations(write(tmp_path / "a.jsonl", rows))
    cat, dog, unprompted = found.items
    assert (cat.questions, cat.answers) == ((0, 1), (True, True))
    assert [found.asked(index, cat) for index in cat.questions] == ["Is it clear?", 'Is it "cat"?']
    assert (dog.prompt, dog.answers) == ("dog", (False,))
    assert found.asked(0, unprompted) == "Is it clear?"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (simple("a.png", "Is it?", "maybe"), "row 1 has the answer 'maybe'; allowed: yes, no"),
        (simple("a.png", "Is it [[prompt]]?", "yes"), "asks about .*has no prompt"),
        (simple("a.png", None, "yes"), "row 1 has no 'question'"),
        ({"item": "a.png"}, "columns item; needed: item, question, answer"),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, message):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=message):
        read_annotations(write(tmp_path / "a.jsonl", [row]))


def test_missing_items_are_listed_and_left_out(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(b"x")
    path = write(tmp_path / "a.jsonl", [simple("a.png", "Is it?", "yes"), simple("b.png", "Is it?", "no")])
    with caplog.at_level(logging.WARNING):
        assert len(read_annotations(path, allow_missing=0.5).items) == 1
    assert "b.png is not there" in caplog.text
    with pytest.raises(ValueError, match="allowed: 5%"):
        read_annotations(path)


def annotations():
    """Question 0: 30 yes, 10 no. Question 1: only yes. Question 2: 20 and 20, answered for every other
    item."""
    items = []
    for row in range(40):
        more = ((2,), (row % 4 == 0 or row % 4 == 1 and row > 1,)) if row % 2 == 0 else ((), ())
        items.append(Annotated(f"{row}.png", "p", (0, 1, *more[0]), (row >= 10, True, *more[1])))
    return Annotations("a", ("Is it 0?", "Is it 1?", "Is it 2?"), tuple(items))


def test_balance_keeps_as_many_yes_as_no():
    given = annotations()
    assert given.counts().tolist() == [[10, 30], [0, 40], [10, 10]]
    first, second = (balance(given, np.random.default_rng(seed)) for seed in (0, 1))
    assert first.counts().tolist() == [[10, 10], [0, 0], [10, 10]]
    assert first.items != second.items  # another draw of the thirty
    known = {item.item: dict(zip(item.questions, item.answers, strict=True)) for item in given.items}
    for item in first.items:
        assert all(known[item.item][q] == a for q, a in zip(item.questions, item.answers, strict=True))
    assert one_sided(given) == ["Is it 1?"]


def test_one_kind_of_answer_throughout_cannot_be_balanced():
    given = Annotations("a", ("Is it?",), (Annotated("a.png", "", (0,), (True,)),) * 3)
    with pytest.raises(ValueError, match="every question has one kind of answer only"):
        balance(given, np.random.default_rng(0))


def test_split_is_by_item_and_from_the_seed():
    given = annotations()
    train, held = split(given, 0.25, seed=1)
    assert len(held.items) == 10 and len(train.items) == 30
    assert {item.item for item in train.items} | {item.item for item in held.items} == {
        item.item for item in given.items
    }
    assert split(given, 0.25, seed=1)[1].items == held.items != split(given, 0.25, seed=2)[1].items
    with pytest.raises(ValueError, match="cannot be held out"):
        split(given, 0.001, seed=0)
