from pathlib import Path

import pytest

from mpo.config import ConfigError, PromptsConfig
from mpo.prompts import prompt_sets, read_prompts, validation_prompts
from mpo.store import write_table

AWKWARD = ['say "hi"', "it's", "two\nlines", "🦊 in 雪", "x" * 2000, "a, b; ${c} {d}"]


def test_awkward_prompts_come_through_every_format_that_can_hold_them(tmp_path):
    import csv
    import json

    rows = [{"prompt": prompt, "other": 1} for prompt in AWKWARD]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["other", "prompt"])
        writer.writeheader()
        writer.writerows(rows)
    write_table(tmp_path / "p.parquet", rows, {"prompt": "string", "other": "int64"})
    single = [prompt for prompt in AWKWARD if "\n" not in prompt]
    (tmp_path / "p.txt").write_text("\n\n".join(single), encoding="utf-8")
    for suffix in ("jsonl", "csv", "parquet"):
        assert read_prompts(tmp_path / f"p.{suffix}") == AWKWARD
    assert read_prompts(tmp_path / "p.txt") == single


def test_repeats_are_dropped_and_order_kept(tmp_path):
    (tmp_path / "p.txt").write_text("b\r\na\r\nb\r\n\r\n c \n")
    assert read_prompts(tmp_path / "p.txt") == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "holds no prompt"),
        ("p.txt", b"ok\n\xff", "not UTF-8 at byte 3"),
        ("p.md", b"a", "prompt files end in .txt, .jsonl, .csv or .parquet, not '.md'"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ', "line 2 is not JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}', "row 2 has no prompt"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 3}', "row 2 has no prompt"),
        ("p.jsonl", b'"a"', "row 1 has no prompt"),
        ("p.csv", b"text\na", "row 1 has no prompt"),
        ("p.parquet", b"no table", "no parquet table with a `prompt` column"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_prompts(tmp_path / name)
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_missing_column(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such prompt file"):
        read_prompts(tmp_path / "p.txt")
    write_table(tmp_path / "p.parquet", [{"text": "a"}], {"text": "string"})
    with pytest.raises(ValueError, match="`prompt` column"):
        read_prompts(tmp_path / "p.parquet")


def test_the_setting_of_a_bad_file_is_named(tmp_path):
    good, empty, none = (str(tmp_path / f"{name}.txt") for name in ("good", "empty", "none"))
    Path(good).write_text("1\n2\n")
    Path(empty).write_text("")
    with pytest.raises(FileNotFoundError) as caught:
        prompt_sets(PromptsConfig(none, good))
    assert str(caught.value) == f"prompts.train = {none}: no such prompt file"
    with pytest.raises(ConfigError) as caught:
        prompt_sets(PromptsConfig(good, empty))
    assert str(caught.value) == f"prompts.heldout = {empty}: holds no prompt"
    with pytest.raises(FileNotFoundError, match="^prompts.validation = .*: no such prompt file"):
        validation_prompts(PromptsConfig(good, good, validation=none), 1, [], [])


def test_limits_cut_before_the_sets_are_compared(tmp_path):
    (tmp_path / "a.txt").write_text("1\n2\n3")
    (tmp_path / "b.txt").write_text("4\n3")
    config = PromptsConfig(str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    with pytest.raises(ValueError, match="1 of its prompts are training prompts too, such as '3'"):
        prompt_sets(config)
    config.train_limit = 2
    assert prompt_sets(config) == (["1", "2"], ["4", "3"])


def test_a_single_heldout_prompt_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "a.txt").write_text("1\n2\n")
    (tmp_path / "b.txt").write_text("4\n4\n")  # the same one twice
    with pytest.raises(ConfigError, match="b.txt': one prompt has no interval; needed at least 2"):
        prompt_sets(PromptsConfig(str(tmp_path / "a.txt"), str(tmp_path / "b.txt")))


def test_validation_prompts_are_neither_trained_on_nor_held_out(tmp_path):
    (tmp_path / "train.txt").write_text("1\n2\n3\n4\n5\n")
    (tmp_path / "heldout.txt").write_text("4\n6\n")
    (tmp_path / "own.txt").write_text("8\n9\n2\n")
    config = PromptsConfig(str(tmp_path / "train.txt"), str(tmp_path / "heldout.txt"), train_limit=2)
    sets = prompt_sets(config)
    assert validation_prompts(config, 2, *sets) == ["3", "5"]
    with pytest.raises(ConfigError, match="has 2 prompts for validate.prompts = 3; set prompts.validation"):
        validation_prompts(config, 3, *sets)
    config.validation = str(tmp_path / "own.txt")
    assert validation_prompts(config, 2, *sets) == ["8", "9"]
    with pytest.raises(ConfigError, match="1 of its prompts are training or held-out prompts too"):
        validation_prompts(config, 3, *sets)
    with pytest.raises(ConfigError, match="has 3 prompts for validate.prompts = 4; lower validate.prompts"):
        validation_prompts(config, 4, ["4"], ["6"])
