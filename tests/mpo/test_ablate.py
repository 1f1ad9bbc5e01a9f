"""`mpo ablate` on tiny random models: what is shared, killed, failed, and what comes out."""

import json
import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from mpo import ablate, cli
from mpo.ablate import Job, _next, _Step, hints, jobs
from mpo.ablation import load_ablation, members, shard
from mpo.store import read_table

TWO = {"pairs.margin": [0.1, 0.2]}


@pytest.fixture(scope="module")
def ablation(tiny_run, tmp_path_factory):
    """Writes an ablation over the tiny run; its keywords replace settings of it."""
    folder = tmp_path_factory.mktemp("ablation")
    base = tiny_run(folder, train={"steps": 2}, evaluate={"bootstrap": 100})

    def write(name="two", **settings):
        content = {"base": str(base), "seeds": [0, 1], "folder": str(folder / name), "axes": {"margin": TWO}}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name} | content | settings))
        return path

    return write


@pytest.fixture
def mpo(monkeypatch, capsys):
    """Runs `mpo ablate`; returns exit code and what it printed."""

    def run(path, *words) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mpo", "ablate", str(path), *words])
        monkeypatch.setattr(ablate, "console", Console(file=sys.stdout, width=200))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out + printed.err

    return run


def test_several_processes_are_refused(mpo, monkeypatch, tmp_path):
    monkeypatch.setenv("MPO_PROCESSES", "2")
    assert mpo(tmp_path / "a.yaml") == (
        2,
        "mpo: MPO_PROCESSES: not with ablate; --parallel N runs N arms at once\n",
    )


def kill_first(monkeypatch, moment):
    """Let the first process that `mpo ablate` starts be killed when `moment` is there."""
    begin, begun = ablate._start, []

    def start(*words):
        worker = begin(*words)
        if not begun:
            begun.append(worker)
            while not moment() and worker.process.is_alive():
                worker.process.join(0.02)
            os.kill(worker.process.pid, signal.SIGKILL)
        return worker

    monkeypatch.setattr(ablate, "_start", start)


def test_an_arm_that_cannot_be_stops_all_before_anything_is_sampled(ablation, mpo):
    wrong = {"objectives.dims": {"d9": {"role": "hold"}}}
    path = ablation("wrong", axes={"dims": {"right": {"pairs.margin": 0.1}, "wrong": wrong}})
    folder = Path(load_ablation(path).folder)
    code, printed = mpo(path)
    assert code == 2 and "d9" in printed.splitlines()[-1]
    assert not folder.exists()


def test_killed_and_started_again_it_makes_what_is_missing_once_and_compares(ablation, mpo, monkeypatch):
    path = ablation("killed", seeds=[0], axes={"margin": {"pairs.margin": [0.1, 0.2, 1000.0]}})
    every = jobs(members(load_ablation(path)))
    shared = every[0].run.artifacts.candidates
    with monkeypatch.context() as patch:
        kill_first(patch, lambda: shared.done)
        code, out = mpo(path)
    assert code == 2 and "0.1-seed0: failed: its process ended with exit code -9" in out
    made = {entry.name: entry.stat().st_mtime_ns for entry in shared.folder.iterdir()}
    code, out = mpo(path, "--parallel", "2", "--pareto", "judge.d2,judge.total")
    assert code == 2 and "mpo: 1 of 3 runs failed, as 1000.0-seed0: no pair at all" in out
    assert "1 runs are not complete and not counted" in out
    assert {entry.name: entry.stat().st_mtime_ns for entry in shared.folder.iterdir()} == made
    assert [bool(job.todo()) for job in every] == [False, False, True]
    store = shared.folder.parent
    kinds = [entry.name.partition("-")[0] for entry in store.iterdir() if (entry / "done.json").is_file()]
    assert kinds.count("pair") == 2 and kinds.count("evaluate") == 2
    assert kinds.count("generate") == 1 + 1 + 2  # candidates and base for all, tuned for each run
    folder = path.with_suffix("")
    rows = read_table(folder / "ablation.parquet")
    assert {(row["arm"], row["seed"], row["axis.margin"]) for row in rows} == {
        ("0.1", 0, "0.1"),
        ("0.2", 0, "0.2"),
    }
    change = {row["arm"]: row["change"] for row in rows if row["score"] == "total"}
    for arm, found in change.items():
        content = json.loads((folder / f"{arm}-seed0" / "evaluation.json").read_text())
        assert found == content["judge"]["total"]["delta"]
    results = json.loads((folder / "ablation.json").read_text())["results"]
    total = {one["arm"]: one for one in results if one["score"] == "total"}
    assert total["0.1"]["against"] is None
    assert total["0.2"]["change"]["mean"] == pytest.approx(change["0.2"])
    assert total["0.2"]["against"]["mean"] == pytest.approx(change["0.2"] - change["0.1"])
    for name in ("table.md", "table.tex", "axis-margin.svg", "pareto-d2-total.svg", "ablation.html"):
        assert (folder / name).stat().st_size > 0
    code, out = mpo(path, "--plan")
    assert code == 0 and "3 runs of 3 arms, 2 complete; base arm: 0.1" in out
    code, out = mpo(path, "--pareto", "judge.d2")
    assert code == 2 and "mpo: --pareto judge.d2: must be two scores, such as judge.quality," in out


def command(path, words, told):
    """`mpo ablate` as a process of its own, which tells its workers' ids."""
    begin = ablate._start

    def start(*given):
        worker = begin(*given)
        told.send(worker.process.pid)
        return worker

    ablate._start = start
    forkserver._forkserver.__init__()  # that of the tests is no child of this process: it starts its own
    sys.argv = ["mpo", "ablate", str(path), *words]
    cli.main()


def test_a_killed_shard_takes_its_workers_along_goes_on_and_the_last_shard_writes_the_tables(ablation, mpo):
    path = ablation("shards", seeds=[0], overrides={"store": str(ablation().parent / "of-shards")})
    base, other = jobs(members(load_ablation(path)))
    shared, context = other.run.artifacts, multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=command, args=(path, ["--shard", "2/2"], theirs))
    process.start()
    theirs.close()  # so that a command that ends without a worker is an error here
    worker = os.pidfd_open(ours.recv())
    while not shared.candidates.folder.is_dir() and not wait([worker], 0.02):
        assert process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and wait([worker], 60)
    os.close(worker)
    assert shared.candidates.folder.is_dir() and not shared.base_scores.done  # it ended in the midst of it
    code, out = mpo(path, "--shard", "2/2")
    assert code == 0 and "no tables yet: the base arm 0.1 has no complete run" in out
    assert not other.todo() and base.todo() and not (path.with_suffix("") / "table.md").exists()
    code, out = mpo(path, "--shard", "1/2")
    assert code == 0 and "no tables" not in out
    rows = read_table(path.with_suffix("") / "ablation.parquet")
    assert {row["arm"] for row in rows} == {"0.1", "0.2"}


def test_failures_are_told_whether_there_are_tables_or_not(ablation, mpo, monkeypatch):
    path = ablation("fails", folder="runs/none", seeds=[7])
    monkeypatch.setattr(ablate, "run_all", lambda found, parallel: {"0.1-seed7": "it burnt down"})
    code, out = mpo(path)
    assert code == 2 and "no tables yet: the base arm 0.1 has no complete run" in out
    assert out.endswith("mpo: 1 of 2 runs failed, as 0.1-seed7: it burnt down\n")


def test_the_plan_counts_what_is_shared_and_estimates_by_the_times_of_the_store(ablation, mpo, monkeypatch):
    place = ablation().parent / "timed"
    path = ablation("timed", overrides={"store": str(place), "generator.device": "auto"})
    found = jobs(members(load_ablation(path)))
    config = found[0].run.config
    of = f"stable_diffusion {config.generator.path} ownxownxown"
    # 3 s for a denoising step of a sample, 1 s for a sample's score, 5 s for a pair in a training step
    times = [(f"sample {of}", 10, 30), (f"score {config.reward.judge}", 4, 4), (f"train {of} lora", 8, 40)]
    times += [(name, 1.0, 7.0) for name in ("pairs", "evaluation", "report")]
    lines = [json.dumps(dict(zip(("kind", "size", "seconds"), row, strict=True))) + "\n" for row in times]
    place.mkdir()
    (place / "timings.jsonl").write_text("".join(lines[:-1]))
    assert "time: unknown until the store has a run of each kind of work" in mpo(path, "--plan")[1]
    (place / "timings.jsonl").write_text("".join(lines))
    monkeypatch.setattr(ablate, "_devices", lambda: [])
    code, out = mpo(path, "--plan", "--parallel", "2")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert code == 0 and {name: cells for name, *cells in rows} == {
        # of four runs the two of a seed share these: 2 seeds x 5 prompts x 4 candidates x 2 steps x 3 s, ...
        "candidates": ["4", "2", "0", "2", "4 min"],
        "scores": ["4", "2", "0", "2", "40 s"],
        "base": ["4", "2", "0", "2", "36 s"],  # 2 x 3 prompts x 2 steps x 3 s
        "base scores": ["4", "2", "0", "2", "6 s"],
        # and each has its own: 4 runs x 2 steps x 4 pairs x 5 s, ...
        "pairs": ["4", "4", "0", "4", "28 s"],
        "training": ["4", "4", "0", "4", "3 min"],
        "tuned": ["4", "4", "0", "4", "72 s"],
        "tuned scores": ["4", "4", "0", "4", "12 s"],
        "evaluation": ["4", "4", "0", "4", "28 s"],
        "report": ["4", "4", "0", "4", "28 s"],
    }  # 650 s in all
    assert "time: about 11 min in one process, about as long in 2: they share the cores" in out
    done = found[0].run.artifacts.candidates
    done.folder.mkdir(parents=True)
    done.finish({})
    code, out = mpo(path, "--plan")
    (row,) = (line.split() for line in out.splitlines() if "candidates" in line)
    assert row[3:13:2] == ["4", "2", "1", "1", "2"]  # and "min"
    assert "time: about 9 min in one process\n" in out  # 530 s
    monkeypatch.setattr(ablate, "_devices", lambda: ["0", "1"])
    for parallel in (2, 8):  # processes that share a GPU share its speed
        told = ablate._time(530.0, parallel, found)
        assert told == f"about 9 min in one process, at best 4 min in {parallel} on 2 GPUs"
    path = ablation("timed", overrides={"store": str(place), "generator.device": "cpu"})
    told = ablate._time(530.0, 2, jobs(members(load_ablation(path))))
    assert told == "about 9 min in one process, about as long in 2: they share the cores"


def test_what_is_being_made_is_not_started_twice(ablation):
    """Of four runs, two a seed, both seeds' shared parts start; then nothing until one is through."""
    path = ablation("idle", folder="runs/none", overrides={"store": str(ablation("idle").parent / "other")})
    found = jobs(members(load_ablation(path)))
    waiting = [_Step(job, True) for job in found] + [_Step(job, False) for job in found]
    working = []
    while step := _next(waiting, working, {}):
        working.append(type("Worker", (), {"step": step})())
    assert [(w.step.job.member.seed, w.step.shared) for w in working] == [(0, True), (1, True)]
    names = [set(w.step.job.todo(True).values()) for w in working]
    assert not names[0] & names[1]
    failed = {found[0].run.config.name: "no", found[1].run.config.name: "no"}
    assert _next([_Step(found[1], False)], [], failed) is None


def test_arms_combine_as_products_or_one_axis_at_a_time(ablation):
    axes = {
        "beta": {"train.beta": [100, 200]},
        "rule": {"dpo": {"pairs.rule": "total"}, "mpo": {"pairs.rule": "dominance", "pairs.margin": 0.2}},
    }
    product = load_ablation(ablation("grid", axes=axes))
    assert [arm.name for arm in product.arms()] == ["100-dpo", "100-mpo", "200-dpo", "200-mpo"]
    each = load_ablation(ablation("each", axes=axes, combine="each"))
    assert [arm.name for arm in each.arms()] == ["100-dpo", "200-dpo", "100-mpo"]
    without = load_ablation(ablation("skip", axes=axes, skip=[{"beta": ["200"], "rule": "mpo"}]))
    assert [arm.name for arm in without.arms()] == ["100-dpo", "100-mpo", "200-dpo"]
    last = members(product)[-1].config
    assert (last.train.beta, last.pairs.rule, last.pairs.margin, last.seed) == (200, "dominance", 0.2, 1)
    assert last.name == "200-mpo-seed1" and last.run_dir.endswith("grid/200-mpo-seed1")
    more = load_ablation(ablation("grid", axes=axes), ["seeds=[5]", "train.steps=7"])
    assert {(m.seed, m.config.train.steps) for m in members(more)} == {(5, 7)}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=3", "seed: belongs to each run; an ablation has seeds="),
        ("seeds=[1,1]", "seeds = [1, 1]: must be all different"),
        ("combine=zip", "combine = 'zip': must be one of product, each"),
        ("pairs.margin=1", "pairs.margin: is set for every run and by an axis too"),
        ("train.betta=1", "arm 0.1: train.betta: no such setting; the nearest is train.beta"),
        ("axes={a: 3}", "axes.a: must be a mapping: label: {key: value}, or key: [value, value]"),
        ("skip=[{margin: 7}]", "skip: axis margin has no label 7"),
        ("name", "override 'name': must be key=value"),
    ],
)
def test_what_cannot_be_is_one_line(ablation, word, message):
    with pytest.raises(ValueError) as caught:
        members(load_ablation(ablation(), [word]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_shards_are_all_runs_once_with_seeds_together(ablation):
    every = members(load_ablation(ablation(seeds=[0, 1, 2])))
    parts = [shard(every, f"{i}/4") for i in (1, 2, 3, 4)]
    assert [m for part in parts for m in part] == every
    assert [{m.seed for m in shard(every, f"{i}/3")} for i in (1, 2, 3)] == [{0}, {1}, {2}]
    for text in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(ValueError, match="must be i/n with i from 1 to n"):
            shard(every, text)


def test_arms_that_could_share_their_candidates_are_told_how(ablation):
    path = ablation("counts", axes={"n": {"generate.candidates": [2, 4]}})
    (hint,) = hints(jobs(members(load_ablation(path))))
    assert "generate.candidates=4 for all and pairs.candidates" in hint
    assert not hints(jobs(members(load_ablation(ablation()))))
    assert isinstance(jobs(members(load_ablation(path)))[0], Job)
