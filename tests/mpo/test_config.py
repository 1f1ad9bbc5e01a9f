import subprocess
import sys
from dataclasses import asdict

import pytest

from mpo.config import ConfigError, ObjectiveConfig, load, to_yaml

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


def test_names_of_objectives_may_hold_dots_and_patterns(base):
    overrides = ["objectives.dims.dynamic.*.role=hold", "objectives.dims.dynamic.*.tolerance=0.2"]
    dims = load(base, [*overrides, "objectives.dims.a.b={weight: 2}"]).objectives.dims
    assert dims == {
        "dynamic.*": ObjectiveConfig(role="hold", tolerance=0.2),
        "a.b": ObjectiveConfig(weight=2.0),
    }


def test_resolved_yaml_reads_back_equal(base, tmp_path):
    config = load(
        base, ["objectives.dims.clarity.role=hold", "train.options={save_total_limit: 3}", "train.beta=250"]
    )
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(config))
    assert asdict(load(saved)) == asdict(config)
    foreign = load(base, ["pairs.from=data", "prompts.train=null"])
    saved.write_text(to_yaml(foreign))
    assert "from: data" in saved.read_text() and asdict(load(saved)) == asdict(foreign)


def test_words_that_yaml_reads_as_false(base):
    for overrides in (["train.precision=no", "train.displacement.action=off"], []):
        config = load(base, overrides).train
        assert (config.precision, config.displacement.action) == ("no", "off" if overrides else None)
    base.write_text(BASE + "train: {precision: no, displacement: {action: off}}\n")
    config = load(base).train
    assert (config.precision, config.displacement.action) == ("no", "off")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate=.inf", "train.learning_rate = inf: must be finite"),
        ("generator.options=[]", "generator.options = []: must be a mapping"),
        ("train.betta=3", "train.betta: no such setting; the nearest is train.beta"),
        ("beta=3", "beta: no such setting; the nearest is train.beta"),
        ("rewards.judge=x", "rewards: no such setting; the nearest is reward"),
        (
            "objectives.dims.clarity.roel=hold",
            "objectives.dims.clarity.roel: no such setting; the nearest is objectives.dims.clarity.role",
        ),
        ("train.beta=much", "train.beta = 'much': must be a number or auto"),
        ("train.beta=true", "train.beta = True: must be a number or text"),
        ("train.beta=0", "train.beta = 0: must be greater than 0"),
        ("train.beta=nan", "train.beta = 'nan': must be a number or auto"),
        ("train.learning_rate=nan", "train.learning_rate = nan: must be greater than 0"),
        ("train.label_smoothing=0.5", "train.label_smoothing = 0.5: must be less than 0.5"),
        ("train.loss=dpo", "train.loss = 'dpo': must be one of sigmoid, ipo, hinge, poly, mapo"),
        ("train.displacement.action=panic", "must be one of null, off, warn, stop, lower_rate, safeguard"),
        (
            "train.optimizer=adam",
            "must be one of adamw, adamw_8bit, paged_adamw, paged_adamw_8bit, adafactor",
        ),
        ("train.lr_scheduler=cosin", "train.lr_scheduler = 'cosin': must be one of linear, cosine, "),
        ("train.lr_scheduler=greedy", "train.lr_scheduler = 'greedy': must be one of linear, cosine, "),
        ("train.lora.dropout=1", "train.lora.dropout = 1.0: must be less than 1"),
        ("train.lora.targets=[]", "train.lora.targets = []: must name a module, or be null for the family's"),
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
        ("pairs.candidates=9", "pairs.candidates = 9: must be at most generate.candidates = 8"),
        ("objectives.dims.a.b.*.rule=hold", "objectives.dims.a.b.*.rule: no such setting; the nearest is"),
        (
            "objectives.dims.a.b={role: hold, margin: 1}",
            "objectives.dims.a.b.margin = 1: only for role = improve",
        ),
        ("objectives.dims.a={tolerance: 1, margin: 1}", "objectives.dims.a: margin = 1 asks for a rise"),
        ("run_dir=${nothing}", "run_dir: Interpolation key 'nothing' not found"),
        ("train.beta", "override 'train.beta': must be key=value"),
        ("=3", "override '=3': must be key=value"),
        ("reward.features={a:{kind:b}}", "a value is not valid YAML: "),
    ],
)
def test_what_cannot_be_is_one_line_that_names_it(base, override, message):
    with pytest.raises(ConfigError) as caught:
        load(base, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("beta=auto loss=mapo", "train.beta = 'auto': not with train.loss=mapo, which has no reference"),
        ("beta=auto loss=ipo", "train.beta = 'auto': not with train.loss=ipo, which draws the margin"),
        ("loss=ipo label_smoothing=0.1", "train.label_smoothing = 0.1: belongs to train.loss=sigmoid"),
        ("loss=hinge poly_alpha=1", "train.poly_alpha = 1.0: belongs to train.loss=poly"),
        ("loss=poly", "train.poly_alpha = 0.0: with train.loss=poly it must be set"),
        ("loss=mapo sft_weight=1", "train.sft_weight = 1.0: not with train.loss=mapo, which has that term"),
        ("loss=mapo safeguard=true", "train.safeguard = True: not with train.loss=mapo"),
        ("loss=mapo displacement.action=warn", "train.displacement.action = 'warn': train.loss=mapo has no"),
        ("loss=mapo", "train.beta = 2000: with train.loss=mapo it weighs the margin's term"),
        ("loss=mapo beta=500", "must be at most 10, such as train.beta=0.1"),
        ("safeguard=true displacement.action=safeguard", "train.safeguard=true has it on from the start"),
    ],
)
def test_switches_of_the_loss_that_exclude_each_other(base, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load(base, [f"train.{override}" for override in overrides.split()])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reference_is_only_chosen_where_there_is_one(base):
    assert load(base, ["reference=previous", "rounds=2"]).reference == "previous"
    with pytest.raises(ConfigError, match="reference = 'previous': train.loss=mapo has no reference"):
        load(base, ["reference=previous", "rounds=2", "train.loss=mapo", "train.beta=0.1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("", "prompts.train: not with pairs.from"),
        ("prompts.train=null rounds=2", "rounds = 2: not with pairs.from"),
        ("prompts.train=null validate.every=2", "prompts.validation: not set; needed with pairs.from"),
    ],
)
def test_what_pairs_from_elsewhere_exclude(base, overrides, message):
    assert load(base, ["pairs.from=data", "prompts.train=null"]).pairs.source == "data"
    with pytest.raises(ConfigError, match=message):
        load(base, ["pairs.from=data", *overrides.split()])


def test_beta_is_a_number_or_auto(base):
    assert load(base, ["train.beta=auto"]).train.beta == "auto"
    betas = [load(base, [f"train.beta={text}"]).train.beta for text in ("500", "5e2", "500.0")]
    assert betas == [500.0] * 3 and {type(beta) for beta in betas} == {float}  # one name in the store


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
