import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
import yaml
from killing import complaint, start
from pyarrow import parquet
from rich.console import Console
from test_report import embedded

from mpo import cli
from mpo.artifacts import resolve
from mpo.config import load, to_yaml
from mpo.store import read_table


@pytest.fixture
def mpo(monkeypatch, capsys):
    """Runs a command line; returns exit code, stdout and stderr."""

    transformers.logging.set_verbosity_error()  # as `main` has it for a process of its own

    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mpo", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        err = "".join(f"{line}\n" for line in err.splitlines() if line)
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def wide(monkeypatch):
    """Lets tables be printed without breaking a line."""
    monkeypatch.setattr("mpo.show.console", Console(width=200, soft_wrap=True))


def edited(path, target, **changes):
    """A copy of a checklist with changes to its question q1."""
    content = yaml.safe_load(path.read_text())
    content["questions"]["q1"] |= changes
    target.write_text(yaml.safe_dump(content))
    return target


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.betta=1", "train.betta: no such setting; the nearest is train.beta"),
        ("train.beta=big", "train.beta = 'big': must be a number"),
        ("pairs.margin=0", "pairs.margin = 0.0: must be greater than 0"),
        ("generate.candidates=1", "generate.candidates = 1: must be at least 2"),
        ("prompts.train={tmp}/none.txt", "prompts.train = {tmp}/none.txt: no such prompt file"),
        ("prompts.train={tmp}/empty.txt", "prompts.train = {tmp}/empty.txt: holds no prompt"),
        (
            "generator.path={tmp}",
            "generator.path = '{tmp}': has no model_index.json, so it is no model folder",
        ),
        ("generator.path={tmp}/none", "generator.path = {tmp}/none: no such file or folder"),
        ("reward.judge={tmp}/bare", "reward.judge = '{tmp}/bare': has no weights (*.safetensors)"),
        ("reward.checklist={tmp}/none.yaml", "reward.checklist = {tmp}/none.yaml: no such file or folder"),
        ("reward.checklist={tmp}/gate.yaml", "'nobody'"),
        ("reward.checklist={tmp}/weight.yaml", "weight -1.0 of 'q1' must be 0 or more"),
        ("train.lora.targets=[to_q,to_qq]", "to_qq matches no module of UNet2DConditionModel"),
        ("train.options.max_steps=7", "train.options.max_steps: set train.steps instead"),
        ("train.options.adam_beta1=7", "train.options = {{'adam_beta1': 7}}: Invalid beta parameter"),
        (
            "train.lr_scheduler=warmup_stable_decay",
            "train.lr_scheduler = 'warmup_stable_decay' with train.opt",
        ),
        ("generator.device=cuda", "generator.device = 'cuda': torch finds no CUDA GPU here; must be auto or"),
        ("reward.device=cuda", "reward.device = 'cuda': torch finds no CUDA GPU here; must be auto or cpu"),
        ("objectives.dims.d7.role=hold", "objectives.dims.d7: there is no such objective; the nearest is d"),
        ("objectives.dims.*.role=hold", "objectives.dims: leaves nothing to improve; of d0, d1, d2 one must"),
        ("objectives.dims.d*.weight=0", "objectives.dims: leaves nothing to improve; of d0, d1, d2 one must"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_before_anything_is_written(
    mpo, tiny_run, tiny_inputs, tmp_path, monkeypatch, override, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    (tmp_path / "empty.txt").write_text("\n")
    edited(tiny_inputs / "checklist.yaml", tmp_path / "gate.yaml", gate="nobody")
    edited(tiny_inputs / "checklist.yaml", tmp_path / "weight.yaml", weight=-1.0)
    code, out, err = mpo("run", tiny_run(tmp_path), override.format(tmp=tmp_path))
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("mpo: ")
    assert message.format(tmp=tmp_path) in line
    assert not list(tmp_path.glob("store/*-*"))
    assert not list(tmp_path.glob("run/[!.]*"))


def test_a_config_that_is_not_there_and_a_stage_that_is_none(mpo, tiny_run, tmp_path):
    assert mpo("run", tmp_path / "x.yaml")[2] == f"mpo: {tmp_path / 'x.yaml'}: no such config file\n"
    code, _, err = mpo("run", tiny_run(tmp_path), "--until", "pairs")
    assert (code, err) == (
        2,
        "mpo: --until pairs: must be one of generate, score, pair, train, evaluate, report\n",
    )


def test_help_teaches_by_example(mpo):
    for words, example in [
        ([], "mpo run configs/quickstart.yaml"),
        (["run"], "mpo run configs/quickstart.yaml --until pair"),
        (["plan"], "mpo plan configs/quickstart.yaml"),
        (["show"], "mpo show runs/quickstart"),
        (["pairs"], "mpo pairs configs/quickstart.yaml"),
        (["quickstart", "build"], "mpo quickstart build"),
    ]:
        code, out, _ = mpo(*words, "--help")
        assert code == 0
        assert example in out


def test_python_dash_m_mpo_is_the_same_and_help_imports_no_torch(mpo):
    code = "import sys, runpy; sys.argv = ['mpo', '--help']\n"
    code += "try: runpy.run_module('mpo', run_name='__main__')\n"
    code += "finally: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "False"
    assert "mpo run configs/quickstart.yaml" in done.stdout


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    config = tiny_run(tmp_path_factory.mktemp("finished"))
    assert start(config) == 0
    return config


def test_until_pair_shows_the_yield(finished):
    assert start(finished, "--until", "pair") == 0
    printed = finished.with_suffix(".log").read_text()
    assert "granularity" in printed
    assert "correlation within prompts" in printed
    assert "kept " in printed


def test_a_run_ends_with_what_changed_and_where_the_report_lies(finished):
    assert start(finished) == 0
    printed = finished.with_suffix(".log").read_text()
    assert "judge total" in printed
    assert printed.splitlines()[-1] == f"report: {finished.parent / 'run' / 'report.html'}"


def test_no_pair_at_all_names_what_to_relax_and_leaves_nothing(finished):
    assert start(finished, "pairs.margin=1000", f"run_dir={finished.parent / 'none'}") == 2
    assert "no two candidates of a prompt differ by pairs.margin = 1000" in complaint(finished)
    assert not resolve(load(finished, ["pairs.margin=1000"])).artifacts.pairs.folder.exists()


def test_a_fallen_dimension_can_be_the_exit_code(finished, tmp_path):
    folder = shutil.copytree(finished.parent, tmp_path / "copy", symlinks=True)
    places = [f"store={folder / 'store'}", f"run_dir={folder / 'run'}"]
    marker = resolve(load(finished, places)).artifacts.evaluation.folder / "done.json"
    marker.write_text(json.dumps({"regressions": ["d1 (by judge)"]}))
    assert start(finished, *places) == 0
    assert start(finished, *places, "evaluate.fail_on_regression=true") == cli.FELL
    assert complaint(finished) == "mpo: fell significantly: d1 (by judge)"


def test_show_tells_what_is_there(finished, mpo, tiny_run, tmp_path, monkeypatch):
    code, out, _ = mpo("show", finished.parent / "run")
    assert code == 0
    assert "judge total" in out
    assert "to do" not in out
    begun = tiny_run(tmp_path)
    assert start(begun, "--until", "score") == 0
    out = mpo("show", tmp_path / "run")[1]
    assert "there" in out
    assert "to do" in out
    assert "judge total" not in out
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "twin").symlink_to(tmp_path / "run")
    (tmp_path / "twin").mkdir()  # some folder of the same name is not taken for the run
    monkeypatch.chdir(tmp_path)
    assert "there" in mpo("show", "twin")[1]
    code, _, err = mpo("show", tmp_path / "nowhere")
    assert code == 2
    assert "no run there" in err


def test_pairs_shows_every_choice_over_what_is_scored(finished, mpo, tmp_path):
    code, out, _ = mpo("pairs", finished, "--to", tmp_path / "yield", "--counts", "2,3", "--margins", "0.05")
    assert code == 0
    assert "43% of all pairs would be 2.6 a prompt of 6; the paper kept 43 % with 8 candidates" in out
    assert re.search(r"^  dimension: \d+% at pairs\.margin=[\d.]+$", out, re.MULTILINE)
    rows = (tmp_path / "yield" / "yield.csv").read_text().splitlines()
    assert rows[0].startswith("granularity,margin,candidates,pairs,share,")
    assert len(rows) == 1 + 4 * 3 * 2  # granularities, counts 4, 3 and 2, margins .05 and .1
    kept = json.loads((resolve(load(finished)).artifacts.pairs.folder / "done.json").read_text())["pairs"]
    assert [row for row in rows if row.startswith(f"dimension,0.1,4,{kept},")]  # what the run itself found
    assert (tmp_path / "yield" / "yield.svg").read_text().rstrip().endswith("</svg>")


def test_pairs_of_a_half_scored_run_counts_the_scored_prompts(finished, mpo, tmp_path):
    folder = shutil.copytree(finished.parent, tmp_path / "copy", symlinks=True)
    places = [f"store={folder / 'store'}", f"run_dir={folder / 'run'}"]
    scores = resolve(load(finished, places)).artifacts.scores
    scores.shard("scores", 1).unlink()  # prompts 2 and 3 of 5
    out = mpo("pairs", finished, *places)[1]
    assert "2 prompts have no scores yet and are not counted" in out and "pairs of 3 prompts with 4" in out
    shutil.rmtree(scores.folder)
    code, _, err = mpo("pairs", finished, *places)
    assert code == 2 and "nothing is scored yet" in err
    assert mpo("pairs", finished, "--share", "1.5")[2] == "mpo: --share 1.5: must be above 0 and at most 1\n"


def test_fewer_candidates_find_the_pairs_that_so_few_would_have(finished, tmp_path):
    places = [f"run_dir={tmp_path / 'run'}"]
    found = {}
    for change in ("generate.candidates=3", "pairs.candidates=3"):
        assert start(finished, *places, change, "--until", "pair") == 0
        made = resolve(load(finished, [change])).artifacts
        found[change] = [tuple(row.values())[:3] for row in read_table(made.pairs.folder / "pairs.parquet")]
    first, second = found.values()
    assert first == second and first
    shared = resolve(load(finished)).artifacts
    assert resolve(load(finished, ["pairs.candidates=3"])).artifacts.scores == shared.scores
    assert resolve(load(finished, ["pairs.candidates=4"])).artifacts.pairs == shared.pairs


def test_diff_shows_two_runs_side_by_side_paired_by_prompt(finished, mpo, wide, tmp_path):
    folder = shutil.copytree(finished.parent, tmp_path / "copy", symlinks=True)
    words = ["name=second", f"store={folder / 'store'}", f"run_dir={folder / 'run'}", "train.save_steps=3"]
    second = load(finished, words)
    (folder / "run" / "config.yaml").write_text(to_yaml(second))
    shard = resolve(second).artifacts.tuned_scores.shards("scores")[0]
    table = parquet.read_table(shard)
    rows = table.to_pylist()
    rows[0]["dimensions"][1] += 2.0  # one of three prompts is better by 2 in d1
    parquet.write_table(table.from_pylist(rows, schema=table.schema), shard)
    runs, page = (finished.parent / "run", folder / "run"), tmp_path / "new" / "diff.html"
    code, out, _ = mpo("diff", *runs, "--html", page)
    assert code == 0 and "held-out prompts, paired by prompt" in out
    assert "train.save_steps: 2 | 3" in out.splitlines()
    means = json.loads((runs[0] / "evaluation.json").read_text())["judge"]["dimensions"]
    for name, change in (("d0", 0), ("d1", 2 / 3), ("d2", 0)):
        (line,) = (line for line in out.splitlines() if f"judge {name} " in line)
        _, first, other = (cell.strip() for cell in line.split("│")[1:-1])
        mean = means[name]["tuned"]
        assert first == f"{mean:.3f}" and other.startswith(f"{mean + change:.3f} ({change:+.3f}, ")
    assert embedded(page.read_text())["galleries"]["samples"]["steps"] == ["base", "tiny", "second"]
    assert mpo("diff", runs[0])[::2] == (2, "mpo: diff: needs at least two runs\n")
