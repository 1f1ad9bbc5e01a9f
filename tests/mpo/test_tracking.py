"""What a run logs to wandb, read back from the files that wandb writes offline."""

import json
import struct
from dataclasses import replace
from signal import SIGKILL

import pytest
import wandb
from killing import complaint, start
from test_report import fake_run
from wandb.proto.wandb_internal_pb2 import Record

from mpo.artifacts import resolve
from mpo.config import TrackingConfig, WandbConfig, load
from mpo.report import read_log
from mpo.store import write_json
from mpo.tracking import LEDGER, tracking

OFFLINE = TrackingConfig(wandb=WandbConfig(project="foxes", mode="offline"))


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


def artifacts_of(found):
    asked = [record.request for record in found if record.request.HasField("log_artifact")]
    return [request.log_artifact.artifact for request in asked] + [
        record.artifact for record in found if record.HasField("artifact")
    ]


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
    assert sum("yield/_type" in row for row in rows) == 1
    (samples,) = (row for row in rows if "samples/_type" in row)
    assert [samples[f"samples/{name}"] for name in ("_type", "nrows", "ncols")] == ["table-file", 5, 10]
    (path,) = run.folder.glob(f"wandb/offline-run-*/files/{samples['samples/path']}")
    assert json.loads(path.read_text())["columns"][:4] == ["prompt", "base", "tuned", "change"]
    paths = [
        entry.path
        for artifact in artifacts_of(found)
        if artifact.type == "run_table"
        for entry in artifact.manifest.contents
    ]
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


def test_another_training_in_the_same_folder_is_another_wandb_run(run):
    with tracking(run):
        pass
    first = json.loads((run.folder / LEDGER).read_text())["id"]
    write_json(run.folder / LEDGER, {"id": first, "training": "train-0", "step": 150, "logged": ["train"]})
    with tracking(run):
        pass
    ledger = json.loads((run.folder / LEDGER).read_text())
    assert ledger["id"] != first and ledger["step"] == 0 and ledger["logged"] == []


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
