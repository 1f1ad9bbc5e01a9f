import subprocess
import sys
from dataclasses import asdict

import pytest

from mpo.config import ConfigError, load, to_yaml

BASE = """
name: trial
prompts: {train: a.txt, heldout: b.txt}
generator: {path: model}
reward: {judge: judge, checklist: list.yaml}
"""


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(BASE)
    return path


def test_overrides_replace_the_file_and_the_file_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(BASE + "train: {beta: 100, steps: 7}\n")
    config = load(path, ["train.beta=5e2", "train.lora.targets=[to_q, to_k]"])
    assert (config.train.beta, config.train.steps, config.train.batch_size) == (500.0, 7, 32)
    assert config.train.lora.targets == ["to_q", "to_k"]
    assert config.run_dir == "runs/trial"


def test_one_entry_of_a_mapping_can_be_overridden(base):
    config = load(base, ["objectives.dims.colour aesthetic.role=hold", "objectives.dims.clarity.weight=2"])
    assert config.objectives.dims["colour aesthetic"].role == "hold"
    assert config.objectives.dims["clarity"].weight == 2.0
    assert config.objectives.dims["clarity"].role == "improve"


def test_resolved_yaml_reads_back_equal(base, tmp_path):
    config = load(base, ["objectives.dims.clarity.role=hold", "train.options={seed: 3}", "train.beta=250"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(config))
    assert asdict(load(saved)) == asdict(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.betta=3", "train.betta: no such setting; the nearest is train.beta"),
        ("beta=3", "beta: no such setting; the nearest is train.beta"),
        ("rewards.judge=x", "rewards: no such setting; the nearest is reward"),
        (
            "objectives.dims.clarity.roel=hold",
            "objectives.dims.clarity.roel: no such setting; the nearest is objectives.dims.clarity.role",
        ),
        ("train.beta=much", "train.beta = 'much': must be a number"),
        ("train.beta=0", "train.beta = 0.0: must be greater than 0"),
        ("train.beta=nan", "train.beta = nan: must be greater than 0"),
        ("train.steps=2.5", "train.steps = 2.5: must be a whole number"),
        (
            "train.gradient_checkpointing=maybe",
            "train.gradient_checkpointing = 'maybe': must be true or false",
        ),
        ("train.lora.targets=to_q", "train.lora.targets = 'to_q': must be a list, each text or null"),
        (
            "objectives.dims.clarity=hold",
            "objectives.dims.clarity = 'hold': must be a mapping with the keys role, ",
        ),
        ("train=3", "train = 3: must be a mapping with the keys mode, "),
        ("objectives.granularity=dimensions", "must be one of total, dimension, subdimension, question"),
        ("evaluate.oracle=delphi", "evaluate.oracle = 'delphi': must be one of null, quickstart"),
        ("generate.candidates=1", "generate.candidates = 1: must be at least 2"),
        ("pairs.margin=0", "pairs.margin = 0.0: must be greater than 0"),
        ("pairs.margin=-1", "pairs.margin = -1.0: must be greater than 0"),
        ("train.batch_size=12", "train.batch_size = 12: must be a multiple of train.micro_batch_size = 8"),
        ("name=a/b", "name = 'a/b': must be a plain folder name"),
        ("run_dir=${nothing}", "run_dir: Interpolation key 'nothing' not found"),
        ("train.beta", "override 'train.beta': must be key=value"),
        ("=3", "override '=3': must be key=value"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_it(base, override, message):
    with pytest.raises(ConfigError) as caught:
        load(base, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- 1", "must be a mapping with the keys name, seed"),
        ("train: {beta: 1}\ntrain: {beta: 2}", "found duplicate key train"),
        (
            "name: x",
            "not set: generator.path, prompts.heldout, prompts.train, reward.checklist, reward.judge",
        ),
        ("", "not set: generator.path, name, prompts.heldout"),
        ("train: {betta: 1}", "train.betta: no such setting"),
    ],
)
def test_a_bad_file_is_one_line_with_its_name(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="bad.yaml") as caught:
        load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.yaml: no such config file"):
        load(tmp_path / "none.yaml")


def test_nothing_heavy_is_imported():
    code = "import mpo.config, mpo.cli, mpo.artifacts, mpo.plan, mpo.show, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
