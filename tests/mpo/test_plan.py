import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mpo.artifacts import resolve
from mpo.config import load
from mpo.model_size import read_size
from mpo.plan import count_questions, objective_names, plan_table, steps
from mpo.scores import paths
from mpo.timing import amount
from rewards import load_checklist


@pytest.fixture
def planned(tiny_run, tmp_path):
    config = load(tiny_run(tmp_path))
    return resolve(config, now=False), read_size(config.generator.path, config)


def test_counts_follow_from_the_config(planned):
    run, size = planned
    generate, score, pair, train, base, base_scores, *_ = steps(run, size)
    # 5 prompts x 4 candidates x 2 steps x 2 branches of guidance; 5 prompts in shards of 2
    assert (generate.calls, generate.shards, generate.state) == ("80 denoiser rows", 3, "to do")
    assert (score.work, score.calls) == ("20 samples x 6 questions", "20 judge passes")
    assert train.calls.startswith("32 denoiser rows")  # 4 steps x 4 pairs x 2 sides
    assert base.calls == "12 denoiser rows"  # 3 held-out prompts x 1 sample x 2 steps x 2 branches
    # a picture of 16 x 16 at 2 bytes a pixel, a latent of 4 x 8 x 8 floats; a prompt of 16 x 32 floats
    assert generate.disk == 20 * (16 * 16 * 2 + 4 * 8 * 8 * 4) + 5 * 16 * 32 * 4


def test_pairs_from_elsewhere_are_not_counted_before_they_are_read(tiny_run, tmp_path):
    (tmp_path / "data").mkdir()
    config = load(tiny_run(tmp_path), ["prompts.train=null", f"pairs.from={tmp_path / 'data'}"])
    run = resolve(config, now=False)
    generate, score, *_ = steps(run, read_size(config.generator.path, config))
    assert generate.work == f"the pairs of {tmp_path / 'data'}, encoded" and generate.disk is None
    generate.artifact.folder.mkdir(parents=True)
    generate.artifact.shard("candidates", 3).touch()
    assert (generate.state, score.state, score.calls) == ("1 shards", "to do", "")
    assert amount(run, "candidates")[1] == amount(run, "scores")[1] == 1.0  # not divided by no prompts


def test_the_guidance_of_flux_takes_no_second_row(planned):
    run, size = planned
    for family, rows in (("wan", "80"), ("flux", "40")):  # 5 prompts x 4 candidates x 2 steps, x 2 if guided
        run.config.generator.family = family
        assert steps(run, size)[0].calls == f"{rows} denoiser rows"


def test_the_rule_of_pairs_is_told_where_it_is_not_dominance(tiny_run, tmp_path):
    def told(*overrides):
        return steps(resolve(load(tiny_run(tmp_path), overrides), now=False), None)[2].work

    assert told() == "dimension"
    assert told("pairs.rule=total") == "dimension, rule total"


def test_what_is_there_already_is_said(tiny_run, tmp_path):
    config = tiny_run(tmp_path)
    candidates = resolve(load(config)).artifacts.rounds[0].candidates  # by the name that a run gives it
    candidates.folder.mkdir(parents=True)
    candidates.finish({})
    generate, score, *_ = steps(resolve(load(config), now=False), None)
    assert (generate.state, score.state) == ("there", "to do")
    (score.artifact.folder).mkdir()
    score.artifact.shard("scores", 1).touch()
    assert score.state == "1 of 3 shards"


def test_a_plan_imports_no_torch_and_prints_what_it_needs(tiny_run, tmp_path):
    code = f"import sys; sys.argv = ['mpo', 'plan', {str(tiny_run(tmp_path))!r}]\n"
    code += "from mpo.cli import main\n"
    code += "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "False\n"
    assert "free in" in done.stdout and "at least" not in done.stdout
    assert "a process to train: " in done.stdout and "activations of 4 rows" in done.stdout
    assert not (tmp_path / "store").exists()


def test_a_refusal_is_one_line(tiny_run, tmp_path):
    line = [sys.executable, "-m", "mpo", "plan", tiny_run(tmp_path), f"generator.path={tmp_path}/none"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.stderr == f"mpo: generator.path = {tmp_path}/none: no such file or folder\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_a_model_that_is_not_downloaded_is_unknown_and_no_error(tiny_run, tmp_path, capsys):
    config = load(tiny_run(tmp_path), ["generator.path=nobody/nothing"])
    assert read_size(config.generator.path, config) is None
    run = resolve(config, now=False)
    assert steps(run, None)[0].to_disk == "unknown"
    plan_table(run)
    # 5 prompts x 4 candidates and 2 x 3 held-out samples are scored, 6 questions of 40 bytes each
    assert "disk    at least 6.24 kB to write" in capsys.readouterr().out


def test_questions_are_counted_in_yaml_only(tiny_inputs):
    assert count_questions(str(tiny_inputs / "checklist.yaml")) == 6
    assert count_questions(str(tiny_inputs)) is None


def test_the_objectives_of_a_checklist_are_those_of_its_scores(tiny_inputs):
    mine = tiny_inputs / "features.yaml"
    content = yaml.safe_load((tiny_inputs / "checklist.yaml").read_text())
    content["questions"]["q5"]["weight"] = 0
    feature = {"dimension": "d1", "subdimension": "vqa", "weight": 2.0, "model": "clip-flant5"}
    mine.write_text(yaml.safe_dump(content | {"features": {"vqa": feature}}))
    for file in (mine, *Path("configs/checklists").glob("*.yaml")):
        assert objective_names(str(file)) == paths(load_checklist(str(file)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objectives.dims.d7.role=hold", "objectives.dims.d7: there is no such objective; the nearest is d"),
        ("objectives.dims.*.role=hold", "objectives.dims: leaves nothing to improve; of d0, d1, d2 one must"),
        ("train.lora.targets=[to_qq]", "train.lora.targets: to_qq matches no module of "),
        ("reward.checklist={tmp}/list.yaml", "reward.checklist = {tmp}/list.yaml: no checklist; `mpo checkl"),
        ("reward.checklist={tmp}/bad.yaml", "reward.checklist = {tmp}/bad.yaml: no checklist; `mpo checklis"),
    ],
)
def test_a_plan_refuses_what_a_run_would_before_it_shows_anything(
    tiny_run, tmp_path, override, message, capsys
):
    (tmp_path / "list.yaml").write_text("questions: [a, b]")
    (tmp_path / "bad.yaml").write_text("questions: [a")
    run = resolve(load(tiny_run(tmp_path), [override.format(tmp=tmp_path)]), now=False)
    with pytest.raises(ValueError) as caught:
        plan_table(run)
    assert str(caught.value).startswith(message.format(tmp=tmp_path))
    assert not capsys.readouterr().out
