"""From a run's settings to the Trainer's: nothing is lost on the way, and what cannot be is one line."""

from dataclasses import asdict, fields

import pytest
from omegaconf import OmegaConf
from training import settings
from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from mpo import training_arguments as of_training
from mpo.config import OPTIMIZERS, SCHEDULERS, DisplacementConfig, RunConfig, TrainConfig
from mpo.training_arguments import DiffusionDPOConfig, check_training, training_arguments

# Every switch of the loss, off its default.
SWITCHES = {
    "loss": "poly",
    "beta": 123.0,
    "beta_target": 0.3,
    "label_smoothing": 0.1,
    "poly_alpha": 0.7,
    "sft_weight": 0.2,
    "dpop_weight": 0.4,
    "margin_offset": 0.6,
    "safeguard": True,
    "safeguard_mu": 0.8,
}
WATCH = {"action": "lower_rate", "patience": 7, "threshold": 0.02, "decay": 0.9, "factor": 0.4}
# The rest of the settings: off their default, what the Trainer calls them, and what they are there.
OTHERS = {
    "steps": (11, "max_steps", 11),
    "micro_batch_size": (3, "per_device_train_batch_size", 3),
    "batch_size": (30, "gradient_accumulation_steps", 5),  # 30 / (3 * 2 processes)
    "optimizer": ("adafactor", "optim", "adafactor"),
    "learning_rate": (3e-4, "learning_rate", 3e-4),
    "lr_scheduler": ("cosine", "lr_scheduler_type", "cosine"),
    "warmup_steps": (5, "warmup_steps", 5),
    "max_grad_norm": (0.5, "max_grad_norm", 0.5),
    "weight_decay": (0.01, "weight_decay", 0.01),
    "precision": ("bf16", "bf16", True),
    "gradient_checkpointing": (True, "activation_checkpointing", True),
    "save_steps": (9, "save_steps", 9),
    "logging_steps": (4, "logging_steps", 4),
    "report_to": (["tensorboard"], "report_to", ["tensorboard"]),
    "options": ({"adam_beta2": 0.95}, "adam_beta2", 0.95),
}
ELSEWHERE = {"mode", "lora"}  # which make the tuning, not the arguments


def test_every_setting_of_the_loss_and_of_the_training_reaches_the_trainer():
    watch, plain = DisplacementConfig(**WATCH), training_arguments(TrainConfig(), "out", 0, use_cpu=True)
    others = {name: value for name, (value, _, _) in OTHERS.items()}
    train = TrainConfig(**SWITCHES, **others, displacement=watch)
    assert {field.name for field in fields(TrainConfig)} == {*SWITCHES, *OTHERS, *ELSEWHERE, "displacement"}
    arguments = training_arguments(train, "out", 1, processes=2, use_cpu=True)
    expected = SWITCHES | {name: value for _, name, value in OTHERS.values()} | {"seed": 1}
    expected["displacement"] = watch.action
    expected |= {f"displacement_{name}": value for name, value in WATCH.items() if name != "action"}
    for name, value in expected.items():
        assert getattr(arguments, name) == value != getattr(plain, name), name
    known = {field.name for field in fields(DiffusionDPOConfig)}
    assert known - {field.name for field in fields(TrainingArguments)} <= expected.keys()


def test_left_alone_the_loss_is_the_same_in_both_places():
    """Who builds a DiffusionDPOConfig by hand gets what a run's config would give."""
    train, by_hand = TrainConfig(), DiffusionDPOConfig("out", use_cpu=True)
    for name in SWITCHES:
        assert getattr(by_hand, name) == getattr(train, name), name
    for name, value in asdict(train.displacement).items():
        found = "displacement" if name == "action" else f"displacement_{name}"
        assert getattr(by_hand, found) == (value or "warn"), name


def refusal(processes=1, cpu=True, **changes):
    """The line that refuses these settings before anything is sampled."""
    with pytest.raises(ValueError) as caught:
        check_training(settings(**changes), processes, cpu)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_batch_that_does_not_divide_is_one_line():
    told = refusal(processes=4, batch_size=10)
    assert told == "train.batch_size=10: not a multiple of 4 processes; the nearest is 8"
    check_training(settings(batch_size=8), 4, cpu=True)


@pytest.mark.parametrize(("processes", "micro"), [(1, 12), (2, 6), (3, 4), (4, 3), (12, 1)])
def test_a_micro_batch_is_as_large_as_a_processs_share_allows(processes, micro):
    train = settings(batch_size=12, micro_batch_size=12)
    found = training_arguments(train, "out", 0, processes, use_cpu=True)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (micro, 1)
    found = training_arguments(settings(batch_size=12, micro_batch_size=4), "out", 0, processes, use_cpu=True)
    parts = found.per_device_train_batch_size, found.gradient_accumulation_steps
    assert parts == {1: (4, 3), 2: (3, 2), 3: (4, 1), 4: (3, 1), 12: (1, 1)}[processes]


def test_optimisers_that_cannot_run_here_are_one_line(monkeypatch):
    monkeypatch.setattr(of_training, "find_spec", lambda name: None)
    for name in ("adamw_8bit", "paged_adamw", "paged_adamw_8bit"):
        told = refusal(optimizer=name, cpu=False)
        assert f"{name}': needs bitsandbytes, which is not installed" in told
    monkeypatch.setattr(of_training, "find_spec", lambda name: name)
    assert "'adamw_8bit': needs a GPU, and this run is on the CPU" in refusal(optimizer="adamw_8bit")
    check_training(settings(optimizer="adafactor"), 1, cpu=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "train.optimizer = 'adafactor': not with FSDP" in refusal(optimizer="adafactor")
    check_training(settings(), 1, cpu=True)


NEEDED = {  # by the schedules that have no default for it
    "cosine_with_min_lr": {"min_lr": 1e-6},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-6},
    "warmup_stable_decay": {"num_decay_steps": 2},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_schedule_that_is_offered_can_be_made(name):
    given = {"lr_scheduler_kwargs": NEEDED[name]} if name in NEEDED else {}
    check_training(settings(lr_scheduler=name, options=given), 1, cpu=True)
    if name in NEEDED:
        told = refusal(lr_scheduler=name)
        asked = f"train.lr_scheduler = {name!r} with train.options.lr_scheduler_kwargs = None: "
        assert told.startswith(asked)


def test_only_schedules_that_follow_an_evaluation_are_left_out():
    left = {kind.value for kind in SchedulerType} - set(SCHEDULERS)
    assert left == {"reduce_lr_on_plateau", "greedy"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"adam_beta3": 0.9}, "train.options.adam_beta3: not a field of transformers.TrainingArguments"),
        ({"adam_beta1": 7}, "train.optimizer = 'adamw' with train.options = {'adam_beta1': 7}: Invalid beta"),
        ({"adam_beta1": "x"}, "train.optimizer = 'adamw' with train.options = {'adam_beta1': 'x'}: "),
        ({"save_strategy": "never"}, "with train.options = {'save_strategy': 'never'}: "),
        ({"max_steps": 7}, "train.options.max_steps: set train.steps instead"),
        ({"num_train_epochs": 7}, "train.options.num_train_epochs: set train.steps instead"),
        ({"learning_rate": 1e-3}, "train.options.learning_rate: set train.learning_rate instead"),
        ({"beta": 7}, "train.options.beta: set train.beta instead"),
        ({"loss": "ipo"}, "train.options.loss: set train.loss instead"),
        ({"bf16": True}, "train.options.bf16: set train.precision instead"),
        ({"per_device_train_batch_size": 2}, "train.options.per_device_train_batch_size: set train.micro_b"),
        ({"displacement_factor": 0.1}, "train.options.displacement_factor: set train.displacement.factor"),
        ({"seed": 7}, "train.options.seed: set seed instead"),
        ({"use_cpu": True}, "train.options.use_cpu: set generator.device instead"),
        (
            {"eval_strategy": "steps"},
            "train.options.eval_strategy: must be left out; a run evaluates by itself",
        ),
        ({"deepspeed": "zero.json"}, "train.options.deepspeed: must be left out"),
        ({"save_total_limit": "x"}, "train.options.save_total_limit = 'x': must be a whole number or null"),
    ],
)
def test_options_that_are_refused_name_the_setting(options, told):
    assert told in refusal(options=options)


def test_the_key_that_is_named_in_the_place_of_an_option_is_a_setting():
    every = OmegaConf.structured(RunConfig)
    for key in of_training._KEYS.values():
        parent, _, name = key.rpartition(".")
        assert name in (OmegaConf.select(every, parent) if parent else every).keys(), key


def test_every_optimiser_has_its_name_in_transformers():
    assert set(of_training._OPTIMIZERS) == set(OPTIMIZERS)
    names = {kind.value for kind in OptimizerNames}
    assert set(of_training._OPTIMIZERS.values()) <= names
