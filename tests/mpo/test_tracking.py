"""What a run logs to wandb, read back from the files that wandb writes offline."""

import csv
import json
import struct
from base64 import b64encode
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from signal import SIGKILL

import numpy as np
import pytest
import wandb
from accelerate import PartialState
from killing import complaint, start
from test_report import SAMPLES, embedded, fake_run, write_samples
from wandb.proto.wandb_internal_pb2 import Record

from mpo.artifacts import Round, resolve
from mpo.config import TrackingConfig, WandbConfig, load
from mpo.pipeline import Session, report
from mpo.report import read_log
from mpo.scores import read_scores
from mpo.store import read_table, write_json, write_table
from mpo.tracking import LEDGER, tracking
from mpo.training_arguments import check_integrations

OFFLINE = TrackingConfig(wandb=WandbConfig(project="foxes", mode="offline"))


CLIP = Path(__file__).parents[1] / "golden" / "media" / "rotated.mp4"


def records(path):
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    content, place, whole, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole in itself, or the last part
            found.append(Record.FromString(whole))
            whole = b""
    return found


def logged(folder):
    """All records of a run's folder, over its starts in order, and the id of each start."""
    wandb.teardown()  # only then is everything in the files
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    parts = [records(path) for path in files]
    ids = [record.run.run_id for part in parts for record in part if record.HasField("run")]
    return [record for part in parts for record in part], ids


def name_of(item):
    return item.key or "/".join(item.nested_key)


def history(found):
    rows = [record.history.item for record in found if record.HasField("history")]
    return [{name_of(item): json.loads(item.value_json) for item in row} for row in rows]


def table_at(folder, row, name):
    """The table of a row of the history, from the file that it names."""
    (path,) = folder.glob(f"wandb/offline-run-*/files/{row[f'{name}/path']}")
    return json.loads(path.read_text())


def artifacts_of(found):
    asked = [record.request for record in found if record.request.HasField("log_artifact")]
    return [request.log_artifact.artifact for request in asked] + [
        record.artifact for record in found if record.HasField("artifact")
    ]


def table_entries(found):
    """The files of the tables' artifacts."""
    tables = [artifact for artifact in artifacts_of(found) if artifact.type == "run_table"]
    return [entry for artifact in tables for entry in artifact.manifest.contents]


@pytest.fixture
def run(tmp_path):
    run = fake_run(tmp_path)
    write_json(run.artifacts.pairs.folder / "done.json", {"pairs": 9, "prompts": 4})
    write_json(run.artifacts.training.folder / "done.json", {"steps": 150})
    adapter = run.artifacts.training.folder / "adapter"
    adapter.mkdir()
    (adapter / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    return replace(run, config=replace(run.config, tracking=OFFLINE))


def test_a_run_that_starts_again_goes_on_in_the_same_wandb_run(run):
    losses = {row["step"]: row["loss"] for row in read_log(run.artifacts.training) if "loss" in row}
    with pytest.raises(KeyboardInterrupt), tracking(run) as tracker:
        tracker.after("pair")
        for step in (10, 20):
            tracker.curves({"loss": losses[step], "step": step})
        raise KeyboardInterrupt
    with tracking(run) as tracker:
        for stage in ("pair", "train", "evaluate", "report"):
            tracker.after(stage)
    found, ids = logged(run.folder)
    assert (
        len(ids) >= 2 and len(set(ids)) == 1 and ids[0] == json.loads((run.folder / LEDGER).read_text())["id"]
    )
    rows = history(found)
    curve = [(row["train/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert curve == list(losses.items())  # each once, in order
    later = [row for row in rows if "train/loss" in row and row["train/global_step"] > 20]
    assert later and all("train/rewards/margins" in row for row in later)
    (yields,) = (row for row in rows if "yield/_type" in row)
    table = table_at(run.folder, yields, "yield")
    counted = json.loads((run.artifacts.pairs.folder / "yield.json").read_text())["rows"]
    assert table["columns"][:4] == ["granularity", "margin", "candidates", "pairs"]
    assert table["data"] == [[row[name] for name in table["columns"]] for row in counted]
    (samples,) = (row for row in rows if "samples/_type" in row)
    assert [samples[f"samples/{name}"] for name in ("_type", "nrows", "ncols")] == ["table-file", 5, 10]
    table = table_at(run.folder, samples, "samples")
    assert table["columns"][:4] == ["prompt", "base", "tuned", "change"]
    paths = [entry.path for entry in table_entries(found)]
    assert sum(path.endswith(".png") for path in paths) == 2 * samples["samples/nrows"]


def test_the_config_the_summary_and_the_adapter_are_there(run):
    with tracking(run) as tracker:
        for stage in ("pair", "train", "evaluate"):
            tracker.after(stage)
    found, _ = logged(run.folder)
    config = {}
    for record in found:
        for item in (*record.run.config.update, *record.config.update):
            config[name_of(item)] = json.loads(item.value_json)
    assert config["train"]["batch_size"] == 32 and config["name"] == "fox & <hen>"
    summary = {
        name_of(item): json.loads(item.value_json) for record in found for item in record.summary.update
    }
    evaluation = json.loads((run.artifacts.evaluation.folder / "evaluation.json").read_text())
    quality = evaluation["judge"]["dimensions"]["quality"]
    assert summary["evaluation/judge/quality/delta"] == quality["delta"]
    assert summary["evaluation/judge/quality/low"] == quality["ci95"][0] and summary["pairs/pairs"] == 9
    (model,) = (artifact for artifact in artifacts_of(found) if artifact.type == "model")
    assert [entry.path for entry in model.manifest.contents] == ["pytorch_lora_weights.safetensors"]


def test_clips_are_logged_as_clips(run):
    for artifact in (run.artifacts.base, run.artifacts.tuned):
        shard = artifact.shard("candidates", 0)
        write_table(shard, [row | {"media": str(CLIP)} for row in read_table(shard)], SAMPLES)
    with tracking(run) as tracker:
        tracker.after("evaluate")
    found, _ = logged(run.folder)
    (samples,) = (row for row in history(found) if "samples/_type" in row)
    rows = table_at(run.folder, samples, "samples")["data"]
    assert [cell for row in rows for cell in row[1:3]] == ["Video"] * 10  # of the five prompts with scores
    kept = [entry for entry in table_entries(found) if entry.path.endswith(".mp4")]
    assert {entry.digest for entry in kept} == {b64encode(md5(CLIP.read_bytes()).digest()).decode()}


def test_another_training_in_the_same_folder_is_another_wandb_run(run):
    with tracking(run):
        pass
    first = json.loads((run.folder / LEDGER).read_text())["id"]
    write_json(run.folder / LEDGER, {"id": first, "training": "train-0", "step": 150, "logged": ["train"]})
    with tracking(run):
        pass
    ledger = json.loads((run.folder / LEDGER).read_text())
    assert ledger["id"] != first and ledger["step"] == 0 and ledger["logged"] == []


def test_validated_steps_are_curves_in_wandb_in_the_report_and_in_the_csv(run, tmp_path):
    rng, steps = np.random.default_rng(3), {}
    for step, right in ((0, 0.2), (75, 0.6), (150, 0.9)):
        steps[step] = write_samples(tmp_path / f"step-{step}", ["a fox", "a hen", "a hat"], 1, right, rng)
        for part in steps[step]:
            part.finish({})
    made = run.artifacts
    last = Round(made.candidates, made.scores, made.pairs, made.training, steps, None, None, 0)
    run = replace(run, artifacts=replace(made, rounds=(last,)))
    with tracking(run) as tracker:
        tracker.after("train")
    report(Session(run, PartialState(cpu=True), None))
    found, key = history(logged(run.folder)[0]), "validation/quality"
    curve = {row["train/global_step"]: row[key] for row in found if key in row}
    scored = {
        step: read_scores(scores).levels["dimension"][1][:, 0, 2].mean().item()
        for step, (_, scores) in steps.items()
    }
    assert curve == pytest.approx(scored) and len(set(scored.values())) == 3
    with (made.report.folder / "curves.csv").open() as file:
        table = {int(row["step"]): row for row in csv.DictReader(file)}
    assert {step: float(row[key]) for step, row in table.items() if row[key]} == pytest.approx(scored)
    assert table[150]["loss"] and not table[75]["loss"] and not table[0]["loss"]  # logged at 10, 20, ...
    page = (made.report.folder / "report.html").read_text()
    shown = embedded(page)["galleries"]["validation"]
    assert shown["steps"] == ["step 0", "step 75", "step 150"] and len(shown["cards"]) == 3
    assert "<figcaption>Validation: quality</figcaption>" in page


def test_a_run_is_followed_while_it_trains_and_loses_nothing_when_it_is_killed(tiny_run, tmp_path):
    config = tiny_run(tmp_path, train={"logging_steps": 1})
    words = ["tracking.wandb.project=foxes", "tracking.wandb.mode=offline", "--until", "train"]
    killed = start(config, *words, die="checkpoint-2/trainer_state.json", before=False)
    assert killed == -SIGKILL and start(config, *words) == 0
    found, ids = logged(tmp_path / "run")
    curve = [(row["train/global_step"], row["train/loss"]) for row in history(found) if "train/loss" in row]
    rows = read_log(resolve(load(config)).artifacts.training)
    assert dict(curve) == {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert [step for step, _ in curve][-4:] == [1, 2, 3, 4] and len(set(ids)) == 1
    assert start(config, "train.report_to=[smoke_signals]") == 2
    assert "train.report_to = smoke_signals: must be among " in complaint(config)


def test_wandb_is_not_one_of_the_trainers_integrations():
    with pytest.raises(ValueError, match="train.report_to = wandb: set tracking.wandb.project instead"):
        check_integrations(["wandb"])
