import io
import json
import logging

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from rewards.media import load_media
from rewards.preferences import read_preferences, read_verdicts
from rewards.tables import Embedded


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def plain(preference, first="a.png", second="b.png", prompt="a cat"):
    return {"prompt": prompt, "item_1": first, "item_2": second, "preference": preference}


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "pairs.parquet"])
def test_plain_pairs_from_every_format(tmp_path, name):
    files(tmp_path, "a.png", "b.png")
    path = write(tmp_path / name, [plain("1"), plain("2", prompt="a dog"), plain("tie")])
    pairs = read_preferences(path)
    assert pairs.verdicts.tolist() == [1, -1, 0]
    assert pairs.prompts == ["a cat", "a dog", "a cat"]
    assert pairs.first == [tmp_path / "a.png"] * 3 and pairs.second == [tmp_path / "b.png"] * 3
    assert pairs.groups[0] == pairs.groups[2] != pairs.groups[1]


def test_visionreward_videos(tmp_path):
    files(tmp_path / "clips", "x/1.mp4", "x/2.mp4")
    row = {"internal_id": 7, "prompt": "p", "video1_path": "x/1.mp4", "video2_path": "x/2.mp4"}
    rows = [row | {"standard_answer": answer} for answer in ("video2", "Video1 ", "same")]
    pairs = read_preferences(write(tmp_path / "test.parquet", rows), media=tmp_path / "clips")
    assert pairs.verdicts.tolist() == [-1, 1, 0]
    assert pairs.spellings == {"1": {"video1": 1}, "2": {"video2": 1}, "tie": {"same": 1}}


def test_genai_bench_votes(tmp_path):
    files(tmp_path, "l.mp4", "r.mp4")
    votes = ["leftvote", "rightvote", "tievote", "bothbad_vote"]
    rows = [{"prompt": "p", "left_video": "l.mp4", "right_video": "r.mp4", "vote_type": v} for v in votes]
    assert read_preferences(write(tmp_path / "v.parquet", rows)).verdicts.tolist() == [1, -1, 0, 0]


def test_pick_a_pic_pictures_lie_inside_the_table(tmp_path):
    def jpg(colour):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
        return buffer.getvalue()

    labels = [(1.0, 0.0, True), (0.5, 0.5, True), (0.0, 1.0, True), (0.0, 0.0, False)]
    rows = [
        {
            "caption": f"p{i}",
            "jpg_0": jpg((i, 0, 0)),
            "jpg_1": jpg((0, i, 0)),
            "label_0": a,
            "label_1": b,
            "has_label": c,
        }
        for i, (a, b, c) in enumerate(labels)
    ]
    pairs = read_preferences(write(tmp_path / "pickapic.parquet", rows))
    assert pairs.verdicts.tolist() == [1, 0, -1]  # the fourth has no label
    assert isinstance(pairs.first[2], Embedded)
    # row 2 is the first of the second row group
    third = load_media(pairs.first[2])
    assert third.image.getpixel((0, 0)) == (2, 0, 0)
    assert load_media(pairs.second[1]).image.getpixel((0, 0)) == (0, 1, 0)


def test_pictures_as_the_hub_stores_them(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 8, 7)).save(buffer, "PNG")
    picture = {"bytes": buffer.getvalue(), "path": None}
    rows = [{"prompt": "p", "left_image": picture, "right_image": picture, "vote_type": "leftvote"}]
    pairs = read_preferences(write(tmp_path / "images.parquet", rows))
    assert load_media(pairs.first[0]).image.getpixel((0, 0)) == (9, 8, 7)


def test_hpdv2_ranks_become_all_pairs(tmp_path):
    files(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    rows = [{"prompt": "p", "image_path": ["0.jpg", "1.jpg", "2.jpg"], "rank": [2, 1, 2]}]
    pairs = read_preferences(write(tmp_path / "test.json", rows))
    # (0,1): rank 1 is better, so the second; (0,2): equal ranks; (1,2): the first
    assert pairs.verdicts.tolist() == [-1, 0, 1]
    assert [(a.name, b.name) for a, b in zip(pairs.first, pairs.second, strict=True)] == [
        ("0.jpg", "1.jpg"),
        ("0.jpg", "2.jpg"),
        ("1.jpg", "2.jpg"),
    ]


def test_hpdv2_choices(tmp_path):
    files(tmp_path, "0.jpg", "1.jpg")
    rows = [{"prompt": "p", "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1], "user_hash": "u"}]
    assert read_preferences(write(tmp_path / "train.json", rows)).verdicts.tolist() == [-1]


def test_numbers_are_spellings_too():
    verdicts, seen = read_verdicts("f", [1, 2.0, "0", 1])
    assert verdicts.tolist() == [1, -1, 0, 1] and seen == {
        "1": {"1": 2},
        "2": {"2": 1},
        "tie": {"0": 1},
    }


def test_unknown_verdicts_are_counted_and_refused():
    with pytest.raises(ValueError, match=r"unknown meaning: 'maybe' \(2×\); known ones: 'tie' \(1×\)"):
        read_verdicts("f", ["maybe", "tie", "maybe"])
    verdicts, _ = read_verdicts("f", ["maybe", "tie"], {"maybe": "2"})
    assert verdicts.tolist() == [-1, 0]


def test_zero_and_one_alone_are_ambiguous():
    with pytest.raises(ValueError, match="is 0 a tie or the first item"):
        read_verdicts("f", [0, 1, 1])
    assert read_verdicts("f", [0, 1, 1], {"0": "1", "1": "2"})[0].tolist() == [1, -1, -1]


def test_a_meaning_that_is_none_is_refused():
    with pytest.raises(ValueError, match="x=left: allowed meanings: 1, 2, tie"):
        read_verdicts("f", ["x"], {"x": "left"})


def test_missing_items_are_listed_and_left_out_up_to_a_share(tmp_path, caplog):
    files(tmp_path, "a.png", "b.png")
    path = write(tmp_path / "p.jsonl", [plain("1")] * 9 + [plain("2", second="gone.png")])
    with caplog.at_level(logging.WARNING):
        pairs = read_preferences(path, allow_missing=0.1)
    assert len(pairs) == 9 and pairs.missing == [str(tmp_path / "gone.png")]
    assert "1 of 10 rows cannot be used" in caplog.text and "gone.png is not there" in caplog.text
    with pytest.raises(ValueError, match="gone.png is not there; allowed: 5% of the rows"):
        read_preferences(path)


def test_all_items_missing_is_an_error_whatever_the_share(tmp_path):
    with pytest.raises(ValueError, match="1 of 1 rows"):
        read_preferences(write(tmp_path / "p.jsonl", [plain("1")]), allow_missing=1.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", "", "no row in it"),
        ("p.jsonl", "{", "not valid JSON"),
        ("p.jsonl", '{"prompt": "p"}', "columns prompt; needed: prompt, item_1"),
        ("p.json", "[1]", "needed objects"),
        ("p.parquet", "no", "not a parquet file"),
        ("p.txt", "x", "allowed are .parquet"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_preferences(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_row_without_its_verdict_is_named(tmp_path):
    path = write(tmp_path / "p.jsonl", [plain("1"), {"prompt": "p", "item_1": "a", "item_2": "b"}])
    with pytest.raises(ValueError, match="row 2 has no 'preference'"):
        read_preferences(path)


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
@pytest.mark.parametrize("column", ["prompt", "item_1"])
def test_a_row_with_null_in_it_is_named(tmp_path, name, column):
    files(tmp_path, "a.png", "b.png")
    path = write(tmp_path / name, [plain("1"), plain("2") | {column: None}])
    with pytest.raises(ValueError, match=f"{name}: row 2 has no '{column}'"):
        read_preferences(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_preferences(tmp_path / "none.parquet")
