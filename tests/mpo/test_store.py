import multiprocessing
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from mpo.artifacts import resolve
from mpo.config import load
from mpo.store import (
    Artifact,
    Identities,
    digest,
    locked,
    read_table,
    stable_seed,
    write_json,
    write_table,
    write_tensors,
    writing,
)

FORK = multiprocessing.get_context("fork")


def test_digest_is_of_the_content_and_not_of_its_order():
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": [1.5, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})


def test_seeds_are_stable_in_range_and_unlike():
    assert stable_seed(0, "train", "a red circle", 3) == 1037804016592949167  # recorded: runs depend on it
    seeds = {stable_seed(0, "train", prompt, i) for prompt in ("a", "b", "é") for i in range(1000)}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62 > min(seeds)


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.json"
    write_json(path, {"whole": True})
    with pytest.raises(RuntimeError), writing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n "whole": true\n}\n'
    assert os.listdir(tmp_path) == ["table.json"]


def test_tables_and_tensors_come_back_as_they_were(tmp_path):
    rows = [
        {"prompt_id": 1, "p_yes": [0.25, float("inf")], "missing": None},
        {"prompt_id": 2**60, "p_yes": [], "missing": "broken 🦊\n"},
    ]
    write_table(
        tmp_path / "t.parquet", rows, {"prompt_id": "int64", "p_yes": "list[double]", "missing": "string"}
    )
    assert read_table(tmp_path / "t.parquet", tmp_path / "t.parquet") == rows * 2
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor([1.5], dtype=torch.bfloat16)}
    write_tensors(tmp_path / "t.safetensors", tensors)
    back = load_file(tmp_path / "t.safetensors")
    assert back["b"].dtype == torch.bfloat16
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_json_refuses_what_is_no_number(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"delta": float("nan")})
    assert not os.listdir(tmp_path)


def _hold(path, held, release):
    with locked(path):
        held.set()
        release.wait()


def test_a_lock_keeps_others_out_until_its_process_ends_however_it_ends(tmp_path):
    held, release = FORK.Event(), FORK.Event()
    holder = FORK.Process(target=_hold, args=(tmp_path / "lock", held, release))
    holder.start()
    held.wait()
    with (
        pytest.raises(BlockingIOError, match="going on elsewhere"),
        locked(tmp_path / "lock", "going on elsewhere"),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with locked(tmp_path / "lock", "going on elsewhere"):  # what a killed process held is free
        pass


def _enter(path, held, trying):
    held.wait()
    trying.set()
    with locked(path / "lock"):
        (path / "second").write_text((path / "first").read_text())


def test_without_an_answer_a_second_process_waits(tmp_path):
    held, trying = FORK.Event(), FORK.Event()
    second = FORK.Process(target=_enter, args=(tmp_path, held, trying))
    second.start()  # before the lock is opened: a forked process would hold it too
    with locked(tmp_path / "lock"):
        held.set()
        trying.wait()
        (tmp_path / "first").write_text("made")
    second.join()
    assert (tmp_path / "second").read_text() == "made"


def test_an_artifact_is_complete_when_its_marker_is_there(tmp_path):
    artifact = Artifact.at(tmp_path, "pair", {"margin": 0.1})
    assert artifact == Artifact.at(tmp_path, "pair", {"margin": 0.1})
    assert artifact.folder != Artifact.at(tmp_path, "pair", {"margin": 0.2}).folder
    (artifact.folder / "media").mkdir(parents=True)
    (artifact.folder / "media" / ".0.png.77.tmp").touch()
    assert not artifact.done
    artifact.finish({"pairs": 3})
    assert artifact.done
    assert artifact.facts() == {"pairs": 3}
    assert not os.listdir(artifact.folder / "media")


def test_identity_follows_content_wherever_it_lies(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "weights").write_bytes(b"abc")
        (tmp_path / name / "config.json").write_text("{}")
    identities = Identities(tmp_path / "store")
    first = identities.of(str(tmp_path / "one"))
    assert first == identities.of(str(tmp_path / "two"))
    (tmp_path / "two" / "unet" / "weights").write_bytes(b"abd")
    assert first != identities.of(str(tmp_path / "two"))


def test_a_large_file_is_hashed_once_and_again_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("mpo.store._SMALL", 3)
    large = tmp_path / "large"
    large.write_bytes(b"0123")
    assert Identities(tmp_path).of(str(large), now=False) is None
    known = Identities(tmp_path).of(str(large))
    assert Identities(tmp_path).of(str(large), now=False) == known
    large.write_bytes(b"4567890")
    assert Identities(tmp_path).of(str(large), now=False) is None
    assert Identities(tmp_path).of(str(large)) != known


def test_what_is_neither_here_nor_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    identities = Identities(tmp_path)
    with pytest.raises(FileNotFoundError, match="^/no/such: no such file or folder$"):
        identities.of("/no/such")
    with pytest.raises(
        FileNotFoundError, match="^nobody/nothing: neither a folder here nor in the hub's cache"
    ):
        identities.of("nobody/nothing")
    assert identities.of("nobody/nothing", now=False) is None


def test_scores_are_of_the_weights_of_a_feature(tiny_run, tmp_path):
    (tmp_path / "clip").mkdir()
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(b"abc")

    def scores(**more) -> Artifact:
        feature = {"kind": "clip", "path": str(tmp_path / "clip")} | more
        return resolve(load(tiny_run(tmp_path, reward={"features": {"fit": feature}}))).artifacts.scores

    first = scores()
    assert scores(batch_size=2, device="cpu") == first != scores(dtype="bfloat16")
    weights.write_bytes(b"abd")
    assert scores() != first
    with pytest.raises(FileNotFoundError, match="^reward.features.fit.path = /no/such: no such file"):
        scores(path="/no/such")
