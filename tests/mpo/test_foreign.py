"""Preference data that was not sampled here: read row by row, encoded, trained on."""

import io
import json
from signal import SIGKILL

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from killing import complaint, contents, start, start_two
from PIL import Image
from pyarrow import parquet
from tiny_pipelines import generator_config

from generators.build import build_generator
from generators.saving import write_clip
from mpo.artifacts import resolve
from mpo.config import ConfigError, load
from mpo.foreign import foreign_shard
from mpo.foreign_pairs import read_pairs
from mpo.samples import StoredSamples
from mpo.store import Artifact, read_table
from rewards.media import load_media


def pixels(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Six rows: four pairs, one whose loser is not there, one without a prompt."""
    data = tmp_path / "data"
    (data / "files").mkdir(parents=True)
    rows = []
    for number, prompt in enumerate(["a cat", "a dog", "a cat", "a hat", "lost", " "]):
        names = [f"files/{number}-{side}.png" for side in ("w", "l")]
        for side, name in enumerate(names):
            if (number, side) != (4, 1):
                pixels(2 * number + side).save(data / name)
        rows.append({"prompt": prompt, "winner": names[0], "loser": names[1]})
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


@pytest.fixture
def foreign_run(tiny_run, folder):
    """Writes a tiny run over that folder."""

    def write(place, **pairs):
        place.mkdir()
        path = tiny_run(place)
        config = yaml.safe_load(path.read_text())
        del config["prompts"]["train"]
        config["pairs"] = {"from": str(folder), "allow_bad": 0.4} | pairs
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def test_a_folder_is_encoded_trained_on_and_reported_also_when_killed(
    foreign_run, folder, tiny_pipeline, tmp_path
):
    config = foreign_run(tmp_path / "one")
    assert start(config) == 0
    run = resolve(load(config))
    made = run.artifacts
    skipped = json.loads((made.candidates.folder / "skipped.json").read_text())
    assert skipped.keys() == {"4", "5"}
    assert skipped["4"] == "loser files/4-l.png: no such file" and "prompt is ' '" in skipped["5"]
    table = read_table(*made.candidates.shards("candidates"))
    assert [(r["prompt_id"], r["candidate"]) for r in table] == [(p, c) for p in range(4) for c in range(2)]
    generator = build_generator(generator_config("stable_diffusion", tiny_pipeline("stable_diffusion")))
    stored = StoredSamples(made.candidates)
    assert torch.equal(stored[5], generator.encode([pixels(5)])[0])  # the loser of pair 2
    assert torch.equal(
        stored.rows([3])["prompt_embeds"], generator.encode_prompts(["a hat"])["prompt_embeds"]
    )
    pairs = read_table(made.pairs.folder / "pairs.parquet")
    assert [(r["prompt_id"], r["winner"], r["loser"]) for r in pairs] == [(p, 0, 1) for p in range(4)]
    assert (run.folder / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    assert (run.folder / "report.html").is_file()
    killed = foreign_run(tmp_path / "two")
    for name in ("000001-01.png", "latents-00001.safetensors"):
        assert start(killed, "--until", "pair", die=name) == -SIGKILL
    assert start(killed, "--until", "pair") == 0
    assert start_two(foreign_run(tmp_path / "shared"), "--until", "pair") == [0, 0]
    theirs = contents(tmp_path / "one" / "store")
    for place in ("two", "shared"):
        ours = contents(tmp_path / place / "store")
        assert any(name.endswith("pairs.parquet") for name in ours)
        assert [name for name in ours if ours[name] != theirs[name]] == []


def test_of_a_clip_the_first_frames_are_encoded_and_media_of_no_use_are_named_as_the_user_does(
    tiny_pipeline, tmp_path
):
    generator = build_generator(generator_config("wan", tiny_pipeline("wan")))
    clips = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 32, 3), dtype=np.uint8)
    for name, clip in zip(("won", "lost"), clips, strict=True):
        write_clip(clip, tmp_path / f"{name}.mp4", 8.0)
    write_clip(clips[0][:5], tmp_path / "short.mp4", 8.0)
    pixels(0).save(tmp_path / "won.png")
    (tmp_path / "text.mp4").write_text("no clip")
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "lost.mp4").read_bytes())
    reasons = {
        ("won.mp4", "lost.mp4"): None,
        ("won.png", "lost.mp4"): "winner won.png: image, but wan makes videos",
        ("won.mp4", "short.mp4"): "loser short.mp4: a clip of 5 frames, but generator.frames=9",
        ("text.mp4", "lost.mp4"): "winner text.mp4: neither an image nor a video that can be read (it looks ",
        ("won.mp4", b"no clip"): "loser: neither an image nor a video that can be read (it looks like text)",
        ("copy.mp4", "lost.mp4"): "winner copy.mp4 and loser lost.mp4 are the same",
    }
    media = [
        [{"bytes": m, "path": None} if isinstance(m, bytes) else {"bytes": None, "path": m} for m in row]
        for row in reasons
    ]
    rows = [{"prompt": "a cat", "winner": winner, "loser": loser} for winner, loser in media]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    pairs = read_pairs(str(tmp_path))
    artifact = Artifact.at(tmp_path / "store", "generate", {"samples": 2, "shard_size": len(rows)})
    artifact.folder.mkdir(parents=True)
    foreign_shard(artifact, 0, pairs, range(len(rows)), generator)
    skipped = read_table(artifact.shard("skipped", 0))
    assert [row["row"] for row in skipped] == list(range(1, len(rows)))
    for row, reason in zip(skipped, list(reasons.values())[1:], strict=True):
        assert row["reason"].startswith(reason)
    table = read_table(artifact.shard("candidates", 0))
    assert [(row["prompt_id"], row["candidate"]) for row in table] == [(0, 0), (0, 1)]
    stored = StoredSamples(artifact)
    for row, name in enumerate(("won", "lost")):
        frames = load_media(tmp_path / f"{name}.mp4", "uniform:12").frames[:9]
        assert generator.frame_count == len(frames) == 9 and torch.equal(
            stored[row], generator.encode([frames])[0]
        )
    assert not torch.equal(stored[0], stored[1])


def test_too_many_bad_rows_and_held_out_prompts_are_one_line(foreign_run, tmp_path, folder):
    config = foreign_run(tmp_path / "one", allow_bad=0.2)
    assert start(config, "--until", "generate") == 2
    assert "2 of 6 rows cannot be used, pairs.allow_bad = 0.2" in complaint(config)
    (listed,) = (tmp_path / "one" / "store").glob("generate-*/skipped.json")
    assert json.loads(listed.read_text()).keys() == {"4", "5"} and str(listed) in complaint(config)
    assert not list(listed.parent.glob("latents-*"))  # known before any was encoded
    config = foreign_run(tmp_path / "two")
    (folder / "files" / "2-l.png").write_text("no picture")  # which shows when it is opened
    assert start(config, "--until", "generate") == 2
    assert "3 of 6 rows cannot be used, pairs.allow_bad = 0.4" in complaint(config)
    assert "row 2: loser files/2-l.png: neither an image nor a video" in complaint(config)
    rows = folder / "pairs.jsonl"
    rows.write_text(rows.read_text().replace("a hat", "second"))  # of the held-out prompts
    assert start(config, "--until", "generate") == 2
    assert "1 of its prompts are in pairs.from too, such as 'second'" in complaint(config)


def test_a_line_that_is_broken_or_holds_no_pair_is_one_bad_row(folder, capfd):
    lines = {
        '{"prompt": "a cat", "winner": "files/0-w.png", "loser": "files/0-l.png"}': None,
        '{"prompt": "a cat", "winner": "files/0': "data.jsonl, line 3: Unterminated string starting at",
        '["a cat"]': "data.jsonl, line 4: not an object with a value for each column",
        '{"prompt": "\\ud83d"}': "data.jsonl, line 5: 'utf-8' codec can't encode character",
        '{"prompt": 5, "winner": "files/0-w.png"}': "prompt is 5, needed a text that is not blank",
        '{"prompt": "a cat", "winner": "files/0-w.png"}': "loser is None, needed a file's path or content",
        '{"prompt": "a cat", "winner": 7, "loser": "l"}': "winner is 7, needed a file's path or content",
        '{"prompt": "a cat", "winner": "files/w", "loser": "l"}': "winner files/w: no such file",
        '{"prompt": "a", "winner": "files/0-w.png", "loser": "files/0-w.png"}': "winner and loser are the sa",
    }
    (folder / "pairs.jsonl").unlink()
    (folder / "data.jsonl").write_text("\n" + "\n".join(lines))  # blank lines are no rows
    (folder / "._data.jsonl").write_bytes(b"\0\5")  # hidden, and not part of the data
    (folder / ".git").mkdir()
    (folder / ".git" / "old.jsonl").write_text('{"prompt": "old"}')
    pairs = read_pairs(str(folder))
    assert pairs.rows == [0] and list(pairs.bad) == list(range(1, len(lines)))
    for reason, beginning in zip(pairs.bad.values(), list(lines.values())[1:], strict=True):
        assert reason.startswith(beginning)
    assert capfd.readouterr() == ("", "")
    (folder / "data.jsonl").write_text("prompt,winner\n")
    with pytest.raises(ConfigError, match="none of 1 rows can be read; data.jsonl, line 1: Expecting value$"):
        read_pairs(str(folder))


def test_pick_a_pic_is_read_without_its_ties(tmp_path):
    def png(seed):
        buffer = io.BytesIO()
        pixels(seed).save(buffer, "PNG")
        return buffer.getvalue()

    labels = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (None, 1.0)]
    table = {
        "caption": ["first", "tie", "second", "no label"],
        "jpg_0": [png(2 * i) for i in range(4)],
        "jpg_1": [png(2 * i + 1) for i in range(4)],
        "label_0": [a for a, _ in labels],
        "label_1": [b for _, b in labels],
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
    pairs = read_pairs(str(tmp_path))
    assert (pairs.prompts, pairs.rows, pairs.ties) == (["first", "second"], [0, 2], 1)
    assert list(pairs.bad) == [3] and "label_0 is None" in pairs.bad[3]
    assert pairs.media(0) == (("jpg_0", png(0)), ("jpg_1", png(1)))
    assert pairs.media(1) == (("jpg_1", png(5)), ("jpg_0", png(4)))  # the second was preferred


def test_folders_without_pairs_are_one_line(tmp_path, capfd):
    with pytest.raises(ConfigError, match="holds no .parquet and no .jsonl"):
        read_pairs(str(tmp_path))
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"prompt": "x", "better": "y"}\n')
    with pytest.raises(ConfigError, match="columns better, prompt; needed are prompt, winner, loser or"):
        read_pairs(str(tmp_path))
    tie = {"caption": "x", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": 0.5, "label_1": 0.5}
    lines.write_text(2 * f"{json.dumps(tie)}\n")
    with pytest.raises(ConfigError, match="': all 2 rows are ties or without a label$"):
        read_pairs(str(tmp_path))
    lines.write_text("")
    with pytest.raises(ConfigError, match="': no rows$"):
        read_pairs(str(tmp_path))
    table = tmp_path / "b.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([tie]), table)
    with pytest.raises(ConfigError, match="holds a.jsonl and b.parquet; needed are tables of one kind"):
        read_pairs(str(tmp_path))
    lines.unlink()
    table.write_bytes(bytes(99))
    with pytest.raises(ConfigError, match="': cannot be read: "):
        read_pairs(str(tmp_path))
    parquet.write_table(pyarrow.Table.from_pylist([tie])[:0], table)
    with pytest.raises(ConfigError, match="': no rows$"):
        read_pairs(str(tmp_path))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["../outside.png", "files/../../outside.png", "{absolute}", ".hidden.png"])
def test_files_that_are_not_part_of_the_datas_identity_are_refused(folder, tmp_path, name):
    name = name.format(absolute=tmp_path / "outside.png")
    pixels(0).save(folder / name)
    rows = folder / "pairs.jsonl"
    before = rows.read_text()
    for inside in ("files/../files/2-l.png", str(folder / "files" / "2-l.png")):
        rows.write_text(before.replace("files/2-l.png", inside))
        assert read_pairs(str(folder)).rows == [0, 1, 2, 3]
    rows.write_text(before.replace("files/2-l.png", name))
    with pytest.raises(ConfigError, match="row 2: loser .*: must be a file in that folder"):
        read_pairs(str(folder))
    table = {
        "prompt": ["a cat", "a dog"],
        "winner": [{"bytes": b"x", "path": "/where/it/was.png"}] * 2,  # which is never read
        "loser": [{"bytes": b"x", "path": "l.png"}, {"bytes": None, "path": name}],
    }
    rows.unlink()
    parquet.write_table(pyarrow.table(table), folder / "pairs.parquet")
    with pytest.raises(ConfigError, match="row 1: loser .*png: must be a file in that folder"):
        read_pairs(str(folder))
