"""vqa, score, compare and the checklist commands, as typed, with a tiny random judge."""

import csv
import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from PIL import Image

from mpo.cli import app, main
from mpo.cli_rewards import find_media
from mpo.config import RewardConfig
from rewards.settings import RewardSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "rewards"))
from tiny_vlms import make_model  # noqa: E402

RELEASE = Path(__file__).parents[3] / "shared" / "visionreward"
CHECKLIST = """\
name: small
reduction: mean
questions:
  here: {text: Is there anything}
  fits: {text: 'Is it "[[prompt]]"', dimension: alignment, subdimension: alignment, weight: 2.0, gate: here}
  clear: {text: Is it clear, dimension: quality, subdimension: clarity, weight: 1.0}
"""


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    make_model("llava", folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path, monkeypatch, judge):
    """A working folder with a reward, a cache of its own, and three pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(CHECKLIST)
    Path("reward.yaml").write_text(f"judge: {judge}\nchecklist: small.yaml\ndevice: cpu\nmin_mass: 0\n")
    Path("pictures").mkdir()
    for shade in (0, 90, 200):
        Image.effect_noise((40, 40), shade).convert("RGB").save(f"pictures/noise{shade}.png")
    return tmp_path


def run(capsys, *words: str) -> tuple[int, list[str], list[str]]:
    """Exit code, and lines on standard output and error, of `mpo` with these words."""
    try:
        command = typer.main.get_command(app)
        code = command.main(list(words), standalone_mode=False) or 0
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        code = 2
    shown = capsys.readouterr()
    return code, shown.out.splitlines(), shown.err.splitlines()


def test_score_prints_a_line_an_item_and_writes_tables(folder, capsys):
    options = ["--prompt", "a cat", "--reward", "reward.yaml", "--level", "dimension"]
    code, out, err = run(capsys, "score", "pictures", *options, "--csv", "o.csv", "--plot", "o.png")
    assert code == 0 and len(out) == 3
    assert err[0] == "small: mean of weight x answer, signed, 3 questions"
    with open("o.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["item"] for row in rows] == [f"pictures/noise{shade}.png" for shade in (0, 200, 90)]
    for line, row in zip(out, rows, strict=True):
        total, item, *parts = line.split("  ")
        assert float(total) == pytest.approx(float(row["total"]), abs=1e-4) and item == row["item"]
        assert [part.split()[0] for part in parts] == ["alignment", "quality"]
        assert float(row["alignment"]) + float(row["quality"]) == pytest.approx(float(row["total"]))
        assert abs(float(row["quality"])) == 0.5  # weight 1 of two columns
    assert Image.open("o.png").format == "PNG"
    assert not list(folder.glob("*.part"))
    assert Path("cache/mpo/scores/answers.sqlite").is_file()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--csv", "nowhere/o.csv"], "--csv nowhere/o.csv: no folder nowhere"),
        (["--set", "dtype=float32", "--set", "dtype.x=1"], "--set dtype.x=1: dtype is a value"),
        (["--set", "frames=uniform:0"], "frames: 'uniform:0' is unknown"),
        (["--csv", "pictures"], "--csv pictures: a folder; needed a file"),
        (["--set", "features.fit=[judge"], "--set features.fit=[judge: not a YAML value"),
        (["--set", "min_mass=2"], "min_mass = 2: must be at least 0 and below 1"),
        (["--judge", "judge"], "both were given; name one reward"),
    ],
)
def test_options_that_cannot_be_are_one_line_before_anything_is_scored(folder, capsys, option, said):
    options = ["--prompt", "a cat", "--reward", "reward.yaml", *option]
    code, out, err = run(capsys, "score", "pictures", *options)
    assert code == 2 and not out and len(err) == 1 and said in err[0]


def test_one_broken_item_does_not_stop_the_others(folder, capsys):
    Path("pictures/broken.png").write_text("not a picture")
    code, out, err = run(
        capsys, "score", "pictures", "absent.png", "--prompt", "x", "--reward", "reward.yaml"
    )
    assert code == 1 and len(out) == 3
    assert err[-2].startswith("mpo: not scored: pictures/broken.png: neither an image nor a video")
    assert err[-1] == "mpo: not scored: absent.png: no such file"


def test_a_plot_of_nothing_is_refused_after_the_reasons(folder, capsys):
    words = ["absent.png", "--prompt", "x", "--reward", "reward.yaml", "--plot", "o.png"]
    code, _, err = run(capsys, "score", *words)
    assert code == 2 and not Path("o.png").exists()
    assert err[-2:] == ["mpo: not scored: absent.png: no such file", err[-1]] and "nothing to plot" in err[-1]


def test_json_holds_everything(folder, capsys):
    Path("prompts.txt").write_text("a cat\na dog\na cat\n")
    options = ["--prompts", "prompts.txt", "--reward", "reward.yaml", "--json"]
    code, out, _ = run(capsys, "score", "pictures/*.png", *options)
    cards = [json.loads(line) for line in out]
    assert code == 0 and [card["prompt"] for card in cards] == ["a cat", "a dog", "a cat"]
    for card in cards:
        assert set(card["p_yes"]) == {"here", "fits", "clear"} and card["reduction"] == "mean"
        assert sum(card["levels"]["question"].values()) == pytest.approx(card["levels"]["total"]["total"])


def test_judge_and_checklist_in_the_place_of_a_reward(folder, capsys, judge):
    options = ["--prompt", "a cat", "--judge", judge, "--checklist", "small.yaml"]
    _, plain, _ = run(capsys, "score", "pictures", "--prompt", "a cat", "--reward", "reward.yaml")
    code, out, _ = run(capsys, "score", "pictures", *options, "--set", "min_mass=0", "--set", "device=cpu")
    assert code == 0 and out == plain
    code, _, err = run(capsys, "score", "pictures", *options)
    assert code == 2 and "of the probability of the first answer token" in err[-1]


def test_vqa(folder, capsys):
    words = ["vqa", "pictures/noise0.png", "--question", "Is it clear", "--question", 'Is it "[[prompt]]"']
    code, out, _ = run(capsys, *words, "--prompt", "a cat", "--reward", "reward.yaml")
    assert code == 0 and len(out) == 2
    assert out[0].endswith("pictures/noise0.png  Is it clear") and out[0].split()[0] in ("yes", "no")
    _, asked, _ = run(capsys, *words, "--prompt", "a cat", "--reward", "reward.yaml", "--json")
    first, second = map(json.loads, asked)
    assert second["question"] == 'Is it "a cat"' and out[1].endswith(second["question"])
    code, unasked, err = run(capsys, *words, "--reward", "reward.yaml")
    assert code == 2 and not unasked and "--prompt is needed" in err[0]
    assert (first["p_yes"] > 0.5) == (first["answer"] == "yes")
    scored = run(
        capsys, "score", "pictures/noise0.png", "--prompt", "a cat", "--reward", "reward.yaml", "--json"
    )
    assert json.loads(scored[1][0])["p_yes"]["clear"] == first["p_yes"]


def test_compare_subtracts_sums(folder, capsys):
    words = [
        "pictures/noise0.png",
        "pictures/noise200.png",
        "--prompt",
        "a cat",
        "--reward",
        "reward.yaml",
        "--json",
    ]
    code, out, _ = run(capsys, "compare", *words)
    result = json.loads(out[0])
    assert code == 0
    _, lines, _ = run(capsys, "score", *words)
    one, two = (json.loads(line)["levels"]["total"]["total"] for line in lines)
    assert result["total"] == pytest.approx(2 * (one - two))  # scores are means over two columns
    assert sum(result["dimensions"].values()) == pytest.approx(result["total"])
    sign = (result["total"] > 0) - (result["total"] < 0)
    assert result["better"] == {1: "first", 0: "tie", -1: "second"}[sign]
    code, out, err = run(capsys, "compare", "absent.png", *words[1:-1])
    assert code == 1 and not out and err[-1] == "mpo: not scored: absent.png: no such file"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["score", "pictures", "--reward", "reward.yaml"], "prompts are needed"),
        (["score", "pictures", "--prompt", "x"], "a reward is needed"),
        (["score", "pictures", "--prompt", "x", "--reward", "absent.yaml"], "absent.yaml: no such file"),
        (["score", "pictures", "--prompt", "x", "--reward", "pictures"], "pictures: a folder; needed a YAML"),
        (["score", "pictures", "--prompt", "x", "--reward", "binary.yaml"], "binary.yaml: not valid YAML"),
        (
            ["score", "pictures", "--prompt", "x", "--reward", "reward.yaml", "--level", "dimensions"],
            "'dimension'",
        ),
        (
            ["score", "pictures", "--prompt", "x", "--reward", "reward.yaml", "--set", "devise=cpu"],
            "'device'",
        ),
        (
            ["score", "pictures", "--prompt", "x", "--reward", "reward.yaml", "--set", "batch_size=x"],
            "batch_size",
        ),
        (["score", "pictures", "--prompts", "two.txt", "--reward", "reward.yaml"], "2 prompts for 3 items"),
        (["score", "*.jpg", "--prompt", "x", "--reward", "reward.yaml"], "matches no file"),
        (["score", "cache", "--prompt", "x", "--reward", "reward.yaml"], "no images or videos"),
        (["checklist", "show", "absent.yaml"], "no such file or folder"),
        (["checklist", "fetch", "visionreward-vidoe"], "'visionreward-video'"),
    ],
)
def test_what_the_user_can_mend_is_one_line(words, reason, folder, capsys):
    Path("two.txt").write_text("a\nb\n")
    Path("binary.yaml").write_bytes(b"\x89PNG")
    Path("cache").mkdir(exist_ok=True)
    code, out, err = run(capsys, *words)
    assert code == 2 and not out and len(err) == 1 and reason in err[0]


def test_show(folder, capsys):
    code, out, _ = run(capsys, "checklist", "show", "small.yaml")
    assert code == 0 and out[0] == "small: mean of weight x answer, signed, 3 questions"
    assert out[1].split() == ["2.0000", "alignment"]  # the dimension, its sub-dimension, its question
    assert out[2].startswith("  ") and out[2].split()[0] == "2.0000"
    assert out[3].startswith("    ") and out[3].endswith('fits: Is it "[[prompt]]" [if here]')
    assert out[-1].split()[:2] == ["gate", "here:"]


@pytest.mark.skipif(not RELEASE.is_dir(), reason="the release's files are not here")
def test_fetch(folder, capsys):
    code, out, _ = run(capsys, "checklist", "fetch", "visionreward-video", "--from", str(RELEASE))
    assert code == 0 and "--checklist visionreward-video" in out[0]
    code, out, _ = run(capsys, "checklist", "show", "visionreward-video", "--policy", "strict")
    assert code == 0 and out[0] == "visionreward-video-strict: mean of weight x answer, signed, 29 questions"


def test_media_are_found_in_order(folder):
    Path("pictures/notes.txt").write_text("no medium")
    assert find_media(["pictures/noise90.png", "pictures"]) == [
        Path("pictures/noise90.png"),
        *(Path(f"pictures/noise{shade}.png") for shade in (0, 200, 90)),
    ]


def test_a_runs_reward_has_the_same_settings():
    assert {entry.name for entry in fields(RewardConfig)} == {entry.name for entry in fields(RewardSettings)}


def test_help_of_every_command(capsys, monkeypatch):
    for words in (
        ["vqa"],
        ["score"],
        ["compare"],
        ["convert-sat"],
        ["checklist", "fetch"],
        ["checklist", "show"],
    ):
        monkeypatch.setattr(sys, "argv", ["mpo", *words, "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (
            ended.value.code == 0 and f"mpo {' '.join(words)} " in capsys.readouterr().out.split("Options")[0]
        )
