import json
import logging
from dataclasses import replace
from pathlib import Path

import golden_cogvlm2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rewards import load_judge, load_media
from rewards.annotations import read_annotations
from rewards.finetune import answer_all, draw_sequences, train_judge
from rewards.finetune_settings import JudgeTraining, read_training

RED, BRIGHT = 'Is it "[[prompt]]"?', "Is it very very clear?"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """36 noisy pictures, red or green, bright or dark; both asked about."""
    folder = tmp_path_factory.mktemp("annotated")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(36):
        red, bright = bool(rng.integers(2)), bool(rng.integers(2))
        pixels = rng.integers(0, 30, (32, 32, 3))
        pixels[..., 0 if red else 1] += 220 if bright else 110
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
        for question, answer in ((RED, red), (BRIGHT, bright)):
            answer = "yes" if answer else "no"
            rows.append({"item": f"{index}.png", "question": question, "answer": answer, "prompt": "red"})
    path = folder / "annotations.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def settings(tiny_vlm, data, out, **changes) -> JudgeTraining:
    values = {
        "judge": str(tiny_vlm("llava")),
        "data": str(data),
        "out": str(out),
        "mode": "full",
        "learning_rate": 2e-3,
        "epochs": 3,
        "batch_size": 6,
        "micro_batch_size": 6,
        "eval_steps": 4,
        "device": "cpu",
        "validation_share": 0.3,
        "options": {"disable_tqdm": True, "logging_strategy": "no", "eval_on_start": True},
    }
    return JudgeTraining(**values | changes)


@pytest.mark.parametrize(("mode", "rate"), [("full", 1e-3), ("lora", 5e-3)])
def test_a_judge_learns_its_questions_and_loads_as_any_other(mode, rate, tiny_vlm, data, tmp_path):
    out = tmp_path / "judge"
    given = settings(tiny_vlm, data, out, mode=mode, learning_rate=rate, epochs=5)
    report = train_judge(given)
    assert report.balanced > 0.9 and set(report.questions) == {RED, BRIGHT}
    saved = json.loads((out / "evaluation.json").read_text())
    assert saved["before"]["balanced"] < 0.8 < saved["after"]["balanced"] == report.balanced
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judge"]
    judge = load_judge(out, device="cpu")
    found = read_annotations(data)
    item = found.items[0]
    asked = [found.asked(index, item) for index in item.questions]
    (answers,) = judge.answer([load_media(item.item)], [asked])
    assert (answers.p_yes > 0.5).tolist() == list(item.answers)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_modules_named_frozen_stay_as_they_are(mode, tiny_vlm, data, tmp_path):
    given = settings(tiny_vlm, data, tmp_path / "judge", mode=mode, epochs=1, frozen=["vision_tower"])
    train_judge(given)
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (given.judge, given.out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("vision_tower" in name for name in changed)
    assert any("vision_tower" in name for name in before)
    given = replace(given, out=str(tmp_path / "other"), frozen=["vision_towr"])
    with pytest.raises(ValueError, match="frozen: module 'vision_towr' is unknown; did you mean"):
        train_judge(given)


def test_the_best_validation_is_kept_and_not_the_last(tiny_vlm, data, tmp_path, monkeypatch):
    from rewards import finetune

    scores = iter([0.5, 0.2, 0.9, 0.4, 0.3, 0.3])  # before, at the start, then one a validation, then after
    weights = []

    def report(trainer):
        state = trainer.judge.model.state_dict()
        weights.append({name: value.clone() for name, value in state.items()})
        return replace(original(trainer), balanced=next(scores))

    original = finetune.JudgeTrainer.report
    monkeypatch.setattr(finetune.JudgeTrainer, "report", report)
    train_judge(settings(tiny_vlm, data, tmp_path / "judge", eval_steps=3, epochs=2))
    best, last, kept = weights[2], weights[-2], weights[-1]
    assert all(torch.equal(kept[name], best[name]) for name in best)
    assert not all(torch.equal(last[name], best[name]) for name in best)


def test_training_that_was_cut_short_goes_on_where_it_was(tiny_vlm, data, tmp_path, monkeypatch):
    from rewards import finetune

    straight = settings(tiny_vlm, data, tmp_path / "straight", epochs=2)
    train_judge(straight)
    cut = settings(tiny_vlm, data, tmp_path / "cut", epochs=2)
    steps = []

    def compute_loss(trainer, *args, **kwargs):
        steps.append(trainer.state.global_step)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return original(trainer, *args, **kwargs)

    original = finetune.JudgeTrainer.compute_loss
    monkeypatch.setattr(finetune.JudgeTrainer, "compute_loss", compute_loss)
    with pytest.raises(KeyboardInterrupt):
        train_judge(cut)
    with pytest.raises(ValueError, match="begun with other settings"):
        train_judge(replace(cut, learning_rate=1.0))
    train_judge(cut)
    assert steps[6] == 4  # step 4 was the last checkpoint
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_sequences_are_balanced_shuffled_and_fixed_by_the_seed(tiny_vlm, data, tmp_path):
    annotations = read_annotations(data)
    given = settings(tiny_vlm, data, tmp_path, epochs=2, questions_per_sequence=1, batch_size=1)
    rows = draw_sequences(annotations, given)
    assert rows.to_list() == draw_sequences(annotations, given).to_list()
    assert rows.to_list() != draw_sequences(annotations, replace(given, seed=1)).to_list()
    assert {len(row["questions"]) for row in rows} == {1}
    least = annotations.counts().min(axis=1)
    for half in (rows.select(range(len(rows) // 2)), rows.select(range(len(rows) // 2, len(rows)))):
        found = np.zeros((2, 2), int)
        for row in half:
            item = annotations.items[row["item"]]
            assert item.answers[item.questions.index(row["questions"][0])] == row["answers"][0]
            found[row["questions"][0], row["answers"][0]] += 1
        assert found.tolist() == [[count, count] for count in least]  # each epoch
    assert len(draw_sequences(annotations, replace(given, batch_size=7))) == len(rows) // 7 * 7
    with pytest.raises(ValueError, match=f"batch_size = 999: annotations gives {len(rows)} sequences only"):
        draw_sequences(annotations, replace(given, batch_size=999))
    together = draw_sequences(annotations, replace(given, questions_per_sequence=2, balanced=False))
    orders = {tuple(row["questions"]) for row in together}
    assert orders == {(0, 1), (1, 0)} and len(together) == 72


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_cogvlm2_is_taught_like_any_other(mode, tiny_vlm, data, tmp_path):
    start, out = golden_cogvlm2.FOLDER / "image", tmp_path / "judge"
    given = settings(tiny_vlm, data, out, judge=str(start), mode=mode, epochs=1, learning_rate=1e-2)
    train_judge(given)
    before, after = load_file(start / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed and (mode == "full" or not any("norm" in name or "embed" in name for name in changed))
    answers = load_judge(out, device="cpu").answer([golden_cogvlm2.picture()], [[BRIGHT]])
    assert torch.isfinite(answers[0].p_yes).all()


def test_items_that_cannot_be_judged_are_counted(tiny_vlm, data, caplog):
    judge = load_judge(tiny_vlm("qwen2_vl"), device="cpu")
    annotations = read_annotations(data)
    Image.new("RGB", (1, 400)).save(data.parent / "thin.png")  # Qwen-VL refuses such shapes
    items = [annotations.items[0], replace(annotations.items[1], item=data.parent / "thin.png")]
    with caplog.at_level(logging.WARNING):
        first, second = answer_all(judge, annotations, items)
    assert first[2].tolist() == list(items[0].answers) and second is None
    assert "thin.png" in caplog.text


def test_settings_from_yaml_and_overrides(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("judge: a\ndata: b.jsonl\nout: c\nlearning_rate: 1e-6\noptions: {logging_steps: 5}\n")
    found = read_training(path, ["epochs=3", "lora_targets=[q_proj]"])
    assert (found.judge, found.learning_rate, found.epochs) == ("a", 1e-6, 3)
    assert found.lora_targets == ["q_proj"] and found.options == {"logging_steps": 5}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", "did you mean 'epochs'"),
        ("epochs=many", "epochs: "),
        ("mode=half", "mode 'half'"),
        ("save_dtype=float61", "save_dtype 'float61' is unknown; did you mean 'float16'"),
        ("epochs=0", "epochs = 0: must be at least 1"),
        ("learning_rate=-1", "learning_rate = -1: must be above 0"),
        ("validation_share=1", "validation_share = 1: must be above 0 and below 1"),
        ("micro_batch_size=5", "batch_size = 64: must be a multiple of micro_batch_size = 5"),
        ("epochs", "override 'epochs': must be key=value"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, override, message):
    path = tmp_path / "train.yaml"
    path.write_text("judge: a\ndata: b.jsonl\nout: c\n")
    with pytest.raises(ValueError, match=message) as error:
        read_training(path, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("judge: [a", "not valid YAML"), ("- a", "are a mapping")])
def test_files_that_hold_no_settings_are_one_line(tmp_path, text, message):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"train.yaml: .*{message}") as error:
        read_training(path)
    assert "\n" not in str(error.value)


def test_settings_left_out_are_named(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("judge: a\n")
    with pytest.raises(ValueError, match="not set: data, out"):
        read_training(path)


def test_what_cannot_be_is_refused_before_the_judge_is_loaded(tiny_vlm, data, tmp_path):
    given = settings(tiny_vlm, data, tmp_path / "judge", judge="nowhere")
    with pytest.raises(FileNotFoundError, match="absent.jsonl: no such file"):
        train_judge(replace(given, data=str(tmp_path / "absent.jsonl"), precision="bf16", device="auto"))
    with pytest.raises(ValueError, match="options: .* 'loging_steps' is unknown; did you mean"):
        train_judge(replace(given, options={"loging_steps": 5}))
    with pytest.raises(ValueError, match="must be a multiple of 6"):
        train_judge(replace(given, batch_size=8))
    with pytest.raises(FileExistsError, match="exists already"):
        train_judge(settings(tiny_vlm, data, tmp_path))
