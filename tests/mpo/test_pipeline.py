import os
import shutil
import subprocess
import sys
from signal import SIGKILL
from types import SimpleNamespace

import pytest
import torch
from killing import complaint, contents, start, start_two
from tiny_pipelines import generator_config

from generators.build import build_generator
from generators.stable_diffusion import StableDiffusion
from mpo import pipeline
from mpo.artifacts import resolve
from mpo.config import load
from mpo.pipeline import begin, check, evaluate, run_stages
from mpo.samples import StoredSamples
from mpo.scores import read_scores
from mpo.store import locked, read_table
from rewards.judges.base import Answers
from rewards.judges.transformers_vlm import TransformersJudge


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    """The config of a tiny run that has gone through all stages."""
    config = tiny_run(tmp_path_factory.mktemp("finished"))
    assert start(config) == 0
    return config


def test_a_finished_run_has_all_that_was_promised(finished):
    run = resolve(load(finished))
    made = run.artifacts
    assert load(run.folder / "config.yaml") == run.config
    rows = read_table(*made.candidates.shards("candidates"))
    assert [(row["prompt_id"], row["candidate"]) for row in rows] == [
        (p, c) for p in range(5) for c in range(4)
    ]
    assert [row["prompt"] for row in rows[::4]] == run.train_prompts
    assert len({row["seed"] for row in rows}) == 20
    assert len(list((made.candidates.folder / "media").glob("*.png"))) == 20
    stored = StoredSamples(made.candidates)
    assert not torch.equal(stored[0], stored[19])
    base, tuned = (read_table(*part.shards("candidates")) for part in (made.base, made.tuned))
    assert [row["seed"] for row in base] == [row["seed"] for row in tuned]
    assert contents(made.base.folder / "media") != contents(made.tuned.folder / "media")
    assert (run.folder / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    assert (run.folder / "report.html").read_text().lower().startswith("<!doctype html>")
    for place, name in (("", "curves.csv"), ("adapter", "README.md")):
        assert (run.folder / place / name).read_bytes() == (made.report.folder / name).read_bytes()
    assert (run.folder / "curves.csv").read_text().startswith("step,")
    assert "\n# tiny\n" in (run.folder / "adapter" / "README.md").read_text()
    for name in ("candidates", "pairs", "tuned"):
        assert (run.folder / "artifacts" / name).resolve() == getattr(made, name).folder.resolve()


def test_runs_that_differ_in_pairing_or_training_share_what_comes_before(finished):
    first = resolve(load(finished)).artifacts
    every = {name for name, _ in first.items()}
    changes = {
        "objectives.dims.d0.weight=2": {"candidates", "scores", "base", "base_scores"},
        "pairs.margin=0.2": {"candidates", "scores", "base", "base_scores"},
        "train.beta=10": {"candidates", "scores", "pairs", "base", "base_scores"},
        "train.save_steps=3": every,
        "generate.batch_size=8": every,
        "evaluate.bootstrap=200": every - {"evaluation", "report"},
        "generate.candidates=5": {"base", "base_scores"},
        "reward.min_mass=0.1": {"candidates", "base"},
        "seed=1": set(),
    }
    for change, shared in changes.items():
        other = dict(resolve(load(finished, [change])).artifacts.items())
        assert {name for name, artifact in first.items() if artifact == other[name]} == shared, change


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(finished, tiny_run, tmp_path):
    moments = [
        ("media/000001-02.png", True),  # within a shard
        ("latents-00001.safetensors", False),  # its pictures there, its table not
        ("scores-00001.parquet", True),  # its answers in the cache, its scores not
        ("pairs.parquet", False),
        ("checkpoint-2/trainer_state.json", True),  # a checkpoint half written
        ("checkpoint-2/trainer_state.json", False),  # the first whole one
        ("checkpoint-4/trainer_state.json", False),  # trained, nothing exported
        ("log.jsonl", False),  # exported, not marked
        ("candidates-00001.parquet", False),  # of the held-out samples
        ("evaluation.json", True),
        ("report.html", True),
    ]
    config = tiny_run(tmp_path)
    for name, before in moments:
        assert start(config, die=name, before=before) == -SIGKILL, name
        assert load(tmp_path / "run" / "config.yaml") == load(config)  # which `mpo show` reads
    assert start(config) == 0
    ours, theirs = contents(tmp_path / "store"), contents(finished.parent / "store")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert any(name.endswith("adapter/pytorch_lora_weights.safetensors") for name in ours)
    assert not list((tmp_path / "store").rglob(".*.tmp"))


def test_prompts_are_encoded_once(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished.parent, tmp_path / "copy", symlinks=True)
    run = resolve(load(finished, [f"store={folder / 'store'}", f"run_dir={folder / 'run'}"]))
    made, encoded = run.artifacts, []
    encode = StableDiffusion._encode_prompt
    monkeypatch.setattr(
        StableDiffusion, "_encode_prompt", lambda self, prompt: encoded.append(prompt) or encode(self, prompt)
    )
    before = contents(made.tuned.folder)
    shutil.rmtree(made.tuned.folder)
    evaluate(begin(run))
    assert encoded == [""]  # what guidance steers away from: the base samples have the rest
    assert contents(made.tuned.folder).keys() == before.keys()
    base, tuned = (StoredSamples(part).rows(range(3))["prompt_embeds"] for part in (made.base, made.tuned))
    assert torch.equal(base, tuned)
    generator = build_generator(run.config.generator)
    rows = generator.encode_prompts(["b", "a", "b"])["prompt_embeds"]
    assert encoded[1:] == ["b", "a"]
    assert torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])


def test_a_batch_that_the_processes_cannot_share_is_refused_at_the_start(tiny_run, tmp_path, monkeypatch):
    run = resolve(load(tiny_run(tmp_path)))  # batches of 4, by 2
    for processes in (1, 2, 4):
        check(run, processes)
    monkeypatch.setattr(pipeline, "join", lambda device: SimpleNamespace(num_processes=3))
    with pytest.raises(ValueError, match="not a multiple of 3 processes; the nearest is 3"):
        begin(run)


def test_two_processes_give_what_one_gives(finished, tmp_path):
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
    launch += " --mixed_precision no --dynamo_backend no --main_process_port 0 --module mpo run"
    places = [f"store={tmp_path / 'store'}", f"run_dir={tmp_path / 'run'}"]
    device = "generator.device=auto"  # which is the CPU where there is no GPU
    command = [sys.executable, *launch.split(), str(finished), *places, device, "--until", "pair"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "waiting for" not in done.stderr  # as two runs do that are not one
    theirs = contents(finished.parent / "store")
    ours = contents(tmp_path / "store")
    assert any(name.endswith("pairs.parquet") for name in ours)
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ({"frames": "all"}, "frames: 'all' is unknown"),
        ({"template": "Well?"}, "template 'Well\\?' has no {question}, nor is it one of base, vqa, chat"),
        ({"features": {"fit": {"kind": "judge"}}}, "features 'fit' is unknown"),
        ({"checklist": "configs/checklists/quickstart_video.yaml"}, "asks about videos, .* makes images"),
    ],
)
def test_what_no_judge_can_be_asked_is_refused_at_the_start(reward, told, tiny_run, tmp_path):
    run = resolve(load(tiny_run(tmp_path, reward=reward)))
    with pytest.raises(ValueError, match=told):
        check(run)


def test_a_silent_judge_is_an_error_of_the_stage_not_of_a_shard(tiny_run, tmp_path, monkeypatch):
    run = resolve(load(tiny_run(tmp_path, reward={"min_mass": 0.5})))
    session = begin(run)
    loud: list[str] = []  # files about which the judge says yes or no

    def answer(judge, media, questions):
        shares = [0.9 if any(item.source.endswith(name) for name in loud) else 0.1 for item in media]
        halves = [
            torch.full((len(asked),), share / 2).log() for share, asked in zip(shares, questions, strict=True)
        ]
        return [Answers(half, half) for half in halves]

    monkeypatch.setattr(TransformersJudge, "answer", answer)
    pipeline.candidates(session, run.artifacts.rounds[0])
    for _ in range(2):  # the second time all shards are there
        with pytest.raises(ValueError, match="none of 20 samples has a score; .* yes and no hold 10.0%"):
            pipeline.score(session, run.artifacts.scores, run.artifacts.candidates)
        assert not run.artifacts.scores.done
    for shard in run.artifacts.scores.shards("scores"):
        shard.unlink()
    shutil.rmtree(tmp_path / "store" / "score-cache")
    loud.append("000004-00.png")  # of the last shard
    pipeline.score(begin(run), run.artifacts.scores, run.artifacts.candidates)
    assert len(read_scores(run.artifacts.scores).missing) == 19


@pytest.mark.parametrize(
    "stage, kinds", [("generate", ("candidates", "latents", "conditioning")), ("score", ("scores",))]
)
def test_a_process_that_dies_does_not_lose_the_others_work(stage, kinds, tiny_run, tmp_path):
    config, name = tiny_run(tmp_path), kinds[0]
    # Shards 0 and 2 are the first process's, 1 the second's.
    codes = start_two(config, "--until", stage, die=f"{name}-00001.parquet")
    assert codes[1] == -SIGKILL and codes[0] != 0
    made = getattr(resolve(load(config)).artifacts, name)
    kept = [made.shard(kind, i) for i in (0, 2) for kind in kinds]
    assert all(file.is_file() for file in kept)
    assert not made.shard(name, 1).exists() and not made.done
    written = [file.stat().st_mtime_ns for file in kept]
    assert start(config, "--until", stage) == 0 and made.done
    assert [file.stat().st_mtime_ns for file in kept] == written  # not made again


def test_a_run_of_another_family_goes_through_all_stages(tiny_run, tiny_pipeline, tmp_path):
    """Packed latents, a guidance embedding, two text encoders: no stage knows of them."""
    flux = vars(generator_config("flux", tiny_pipeline("flux"), steps=2))
    prompts = {"train_limit": 2, "heldout_limit": 2}
    config = tiny_run(tmp_path, generator=flux, prompts=prompts, train={"steps": 2, "learning_rate": 1e-2})
    run = resolve(load(config, ["pairs.rule=total", "pairs.margin=1e-6"]))
    run_stages(run)
    stored = StoredSamples(run.artifacts.candidates)
    assert stored[0].shape == (4, 8, 12)  # not packed, at 16 by 24 pixels
    assert {"prompt_embeds", "pooled_prompt_embeds"} == stored.rows([0]).tensors.keys()
    generator = build_generator(run.config.generator)
    generator.pipe.load_lora_weights(run.folder / "adapter")
    seed = read_table(*run.artifacts.tuned.shards("candidates"))[0]["seed"]
    again = generator.sample(generator.encode_prompts(run.heldout_prompts[:1]), [seed]).latents[0]
    base, tuned = (StoredSamples(part)[0] for part in (run.artifacts.base, run.artifacts.tuned))
    torch.testing.assert_close(again, tuned, atol=1e-5, rtol=0)
    assert (tuned - base).abs().max() > 1e-3
    assert "flux" in (run.folder / "report.html").read_text()


def test_a_second_start_is_refused(finished):
    with locked(finished.parent / "run" / ".lock"):
        assert start(finished) == 2
    assert f"{finished.parent / 'run'}: this run is going on in another process" in complaint(finished)


def test_a_corrupt_picture_is_missing_with_its_reason_and_in_no_pair(tiny_run, tmp_path):
    config = tiny_run(tmp_path)
    assert start(config, "--until", "generate") == 0
    made = resolve(load(config)).artifacts
    (made.candidates.folder / "media" / "000001-02.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    for _ in range(2):  # a second start asks nothing again, and still says so
        assert start(config, "--until", "pair") == 1
        assert complaint(config).startswith("mpo: scores: 1 without a score, so in no choice and no mean; ")
        assert "000001-02.png" in complaint(config)
    ((prompt, candidate, reason),) = read_scores(made.scores).missing
    assert (prompt, candidate) == (1, 2)
    assert "000001-02.png" in reason
    pairs = read_table(made.pairs.folder / "pairs.parquet")
    assert pairs
    assert not any(row["prompt_id"] == 1 and 2 in (row["winner"], row["loser"]) for row in pairs)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, and what changes its size in kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", folder], check=True)
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    finished, tiny_run, small_disk, tmp_path
):
    folder, resize = small_disk
    config = tiny_run(tmp_path)
    places = [f"store={folder / 'store'}", f"run_dir={folder / 'run'}"]
    stopped_in = []
    for size in (60, 200, 440, 540):  # kB: in generate, score and train, in a checkpoint and after it
        resize(size)
        assert start(config, *places) == 2
        assert "No space left on device" in complaint(config) or "disk is full" in complaint(config)
        assert not list(folder.rglob(".*.tmp"))
        begun = {path.name.partition("-")[0] for path in (folder / "store").iterdir() if path.is_dir()}
        stopped_in.append("train" if "train" in begun else "score" if "score" in begun else "generate")
    assert set(stopped_in) == {"generate", "score", "train"}
    resize(4000)
    assert start(config, *places) == 0
    assert contents(folder / "store") == contents(finished.parent / "store")
