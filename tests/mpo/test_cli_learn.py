import json

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from mpo import cli_learn
from rewards import build
from rewards.checklist import Checklist, Question
from rewards.judges.base import Answers
from rewards.vision_reward import VisionReward

CHECKLIST = Checklist(
    "mine",
    (
        Question("face", "Is there a face?"),
        Question("sharp", "Is it sharp?", "quality", "clarity", 1.0),
        Question("bright", "Is it bright?", "quality", "light", 1.0),
        Question("smile", "Is the face pleasant?", "fidelity", "face", 1.0, gate="face"),
        Question("grid", 'Is it as "[[prompt]]" asks?', "alignment", "alignment", 1.0),
    ),
)
TRUE = {"sharp": 1.0, "bright": 0.4, "smile": 0.7, "grid": -0.6}


class PixelJudge:
    """Bit k of the first pixel's red value answers question k."""

    name, fingerprint, modality, frames = "pixels", "0", "image", "per_second"

    def answer(self, media, questions):
        values = [item.image.getpixel((0, 0))[0] for item in media]
        return [self._one(value, asked) for value, asked in zip(values, questions, strict=True)]

    def _one(self, value, asked):
        starts = [question.text[:8] for question in CHECKLIST.questions]
        yes = torch.tensor([value >> starts.index(text[:8]) & 1 for text in asked]).bool()
        return Answers(torch.where(yes, -0.1, -3.0), torch.where(yes, -3.0, -0.1))


@pytest.fixture
def mpo(monkeypatch, tmp_path):
    """The commands on an app of their own; the judge reads pixels."""
    app, checklist = typer.Typer(), typer.Typer()
    app.add_typer(checklist, name="checklist")
    cli_learn.register(app, checklist)

    monkeypatch.setattr(build, "load_judge", lambda *args, **options: PixelJudge())
    CHECKLIST.to_yaml(tmp_path / "checklist.yaml")
    (tmp_path / "other").mkdir()
    for name in ("a.yaml", "b.yaml", "other/a.yaml"):
        content = {"judge": "pixels", "checklist": str(tmp_path / "checklist.yaml")}
        (tmp_path / name).write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*args):
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """600 pairs of pictures with preferences from `TRUE`, a tenth of them ties."""
    folder = tmp_path_factory.mktemp("pairs")
    for value in range(32):
        Image.new("RGB", (2, 2), (value, 0, 0)).save(folder / f"{value}.png")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(600):
        values = [int(value) for value in rng.integers(0, 32, size=2)]
        answers = [{name: value >> k & 1 for k, name in enumerate(CHECKLIST.ids)} for value in values]
        coded = [{n: (2 * a[n] - 1) * (n != "smile" or a["face"]) for n in TRUE} for a in answers]
        gap = sum(weight * (coded[0][name] - coded[1][name]) for name, weight in TRUE.items())
        verdict = "1" if rng.random() < 1 / (1 + np.exp(-gap)) else "2"
        verdict = "tie" if rng.random() < 0.1 else verdict
        items = {f"item_{side + 1}": f"{value}.png" for side, value in enumerate(values)}
        rows.append({"prompt": f"p{index % 20}", **items, "preference": verdict})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_fitted_checklist_scores_at_once_and_beats_equal_weights(mpo, data, tmp_path):
    out = tmp_path / "learned.yaml"
    result = mpo(
        "fit-weights",
        data,
        "--judge",
        "pixels",
        "--checklist",
        "checklist.yaml",
        "--out",
        out,
        "--resamples",
        60,
    )
    assert result.exit_code == 0, result.output
    assert "learning curve" in result.output and "algorithm1" in result.output
    learned = Checklist.from_yaml(out)
    weights = {question.id: question.weight for question in learned.questions}
    assert weights["face"] == weights["grid"] == 0  # a gate, and a question that people vote against
    assert weights["sharp"] > weights["smile"] > weights["bright"] > 0
    report = json.loads((tmp_path / "learned.fit.json").read_text())
    assert set(report["zeroed"]) == {"grid"} and len(report["weights"]) == 4
    cards = VisionReward(PixelJudge(), learned).score([data.parent / "14.png"], ["p"])
    assert cards[0].total == pytest.approx(weights["sharp"] + weights["bright"])  # no face: smile counts 0


def test_a_fit_that_cannot_be_written_or_made_is_refused_before_scoring(mpo, data, monkeypatch):
    monkeypatch.setattr(build, "load_judge", None)  # nothing may be loaded
    options = "--judge pixels --checklist checklist.yaml --out".split()
    lost = mpo("fit-weights", data, *options, "nowhere/learned.yaml")
    assert str(lost.exception) == "--out nowhere/learned.yaml: no folder nowhere"
    assert "ridge -1.0" in str(mpo("fit-weights", data, *options, "l.yaml", "--ridge", "-1").exception)
    assert mpo("fit-weights", data, *options, "l.yaml", "--resamples", "0").exit_code == 2


def test_fit_without_a_preference_or_with_one_side_only(mpo, data, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]

    def fit(name, verdict_of):
        path = data.parent / name  # items lie beside it
        path.write_text("\n".join(json.dumps(row | {"preference": verdict_of(row)}) for row in rows[:150]))
        options = "--judge pixels --checklist checklist.yaml --resamples 20 --out".split()
        return mpo("fit-weights", path, *options, tmp_path / "learned.yaml")

    tied = fit("tied.jsonl", lambda row: "tie")
    assert "all 150 pairs are ties, so no weight can be learned" in str(tied.exception)
    assert not (tmp_path / "learned.yaml").exists()

    def sharper_first(row):  # so that the first is always preferred, and with reason
        one, two = (int(row[name].split(".")[0]) & 2 for name in ("item_1", "item_2"))
        return "1" if one >= two else "tie"

    one_sided = fit("one_sided.jsonl", sharper_first)
    assert one_sided.exit_code == 0, one_sided.output
    assert "note: the first item is preferred in every pair" in one_sided.output
    assert Checklist.from_yaml(tmp_path / "learned.yaml").questions[1].weight > 0


def test_a_judge_that_says_no_to_everything_is_named_with_the_likely_cause(mpo, data, tmp_path, monkeypatch):

    def no(self, value, asked):
        return Answers(torch.full((len(asked),), -3.0), torch.full((len(asked),), -0.1))

    monkeypatch.setattr(PixelJudge, "_one", no)
    options = "--judge pixels --checklist checklist.yaml --out".split()
    result = mpo("fit-weights", data, *options, tmp_path / "learned.yaml")
    assert "every pair has the same answers on both sides" in str(result.exception)
    assert "mpo: warning: pixels gave all 32 items no to everything" in result.stderr
    assert "the likely cause is a template after which no always comes first" in result.stderr


def test_benchmark_reports_tau_and_diff_by_dimension(mpo, data, tmp_path):
    out = tmp_path / "report.json"
    result = mpo(
        "bench-reward", data, "--reward", "a.yaml", "--reward", "b.yaml", "--out", out, "--resamples", 50
    )
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["pairs"] == 600 and report["ties"] == report["verdicts"]["tie"]["tie"]
    verdicts = {meaning: seen[meaning] for meaning, seen in report["verdicts"].items()}
    assert f"verdicts read as first item better: '1' ({verdicts['1']}×); second item" in result.output
    total = report["agreement"]["a"]["total"]
    assert 0.55 < total["diff"]["low"] < total["diff"]["value"] < total["diff"]["high"] < 0.9
    assert set(report["agreement"]["a"]) == {"total", "quality", "fidelity", "alignment"}
    assert report["agreement"]["a"]["quality"]["diff"]["value"] > 0.6
    assert report["agreement"]["a"]["alignment"]["diff"]["value"] < 0.5
    assert report["comparisons"][0]["tau"] == {"value": 0.0, "low": 0.0, "high": 0.0}  # the same reward twice
    assert "quality" in result.output


def test_train_judge_prints_the_accuracy_of_every_question(mpo, tmp_path, monkeypatch):
    from rewards import finetune
    from rewards.judge_metrics import measure_answers

    config = tmp_path / "train.yaml"
    config.write_text("judge: a\ndata: b.jsonl\nout: c\n")
    seen = []

    def train(settings):
        seen.append(settings)
        return measure_answers(("Is it sharp?", 'Is it "[[prompt]]"?'), [0, 0, 1], [0.9, 0.8, 0.2], [1, 0, 0])

    monkeypatch.setattr(finetune, "train_judge", train)
    result = mpo("train-judge", config, "epochs=4", "mode=full")
    assert result.exit_code == 0, result.output
    assert (seen[0].judge, seen[0].epochs, seen[0].mode) == ("a", 4, "full")
    assert "sharp" in result.output and "[[prompt]]" in result.output
    assert "balanced accuracy over questions: 50.0" in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--answer", "x"), "needed SPELLING=1"),
        (("--answer", "x=left"), "allowed meanings: 1, 2, tie"),
        (("--reward", "other/a.yaml"), "files must differ in name"),
        (("--media", "nowhere"), "600 of 600 rows cannot be used"),
        (("--out", "nowhere/report.json"), "--out nowhere/report.json: no folder nowhere"),
        (("--reward", "nowhere.yaml"), "nowhere.yaml: no such file"),
    ],
)
def test_wrong_options_are_one_line(mpo, data, args, message):
    result = mpo("bench-reward", data, "--reward", "a.yaml", *args)
    assert isinstance(result.exception, ValueError) and message in str(result.exception)


def test_new_checklist_passes_the_check(mpo, tmp_path):
    path = tmp_path / "clips.yaml"
    assert mpo("checklist", "new", path, "--template", "video").exit_code == 0
    result = mpo("checklist", "check", path)
    assert result.exit_code == 0 and "10 questions, nothing to mend" in result.output
    assert isinstance(mpo("checklist", "new", path).exception, FileExistsError)
    assert "image, video" in str(mpo("checklist", "new", tmp_path / "b", "--template", "audio").exception)


def test_check_lists_what_is_wrong_and_reads_a_sample(mpo, tmp_path):
    path = tmp_path / "mine.yaml"
    CHECKLIST.to_yaml(path)
    (tmp_path / "cards.jsonl").write_text(
        "\n".join(json.dumps({"p_yes": dict.fromkeys(CHECKLIST.ids, p) | {"face": 0.9}}) for p in (0.3, 0.8))
    )
    result = mpo("checklist", "check", path, "--scores", tmp_path / "cards.jsonl")
    assert result.exit_code == 1
    assert result.output.strip() == f"{path}: face: never answered no on 2 items"
    content = yaml.safe_load(path.read_text())
    del content["questions"]["sharp"]["text"]  # a weight without a question
    path.write_text(yaml.safe_dump(content))
    assert "questions.sharp" in str(mpo("checklist", "check", path).exception)
    content["questions"]["sharp"] = {"text": "Is it sharp?", "gate": "nobody", "weight": 0.0}
    path.write_text(yaml.safe_dump(content))
    assert "nobody" in str(mpo("checklist", "check", path).exception)
