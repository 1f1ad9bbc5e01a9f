"""From a run's settings to the Trainer's: nothing is lost on the way, and what cannot be is one line."""

from dataclasses import asdict, fields

import pytest
from training import settings
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from mpo import training_arguments as of_training
from mpo.config import OPTIMIZERS, DisplacementConfig, TrainConfig
from mpo.training_arguments import DiffusionDPOConfig, training_arguments

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


def test_a_batch_that_does_not_divide_is_one_line():
    with pytest.raises(ValueError, match=r"train.batch_size=10: .*micro_batch_size=4 times 2.*nearest is 8"):
        training_arguments(settings(batch_size=10), "out", seed=0, processes=2)
    with pytest.raises(ValueError, match="train.options.adam_beta3"):
        training_arguments(settings(options={"adam_beta3": 0.9}), "out", seed=0)


def test_optimisers_and_schedules_that_are_not_there_are_one_line(monkeypatch):
    monkeypatch.setattr(of_training, "find_spec", lambda name: None)
    for name in ("adamw_8bit", "paged_adamw", "paged_adamw_8bit"):
        with pytest.raises(ValueError, match=f"{name}': needs bitsandbytes, which is not installed"):
            of_training.check_training(settings(optimizer=name), cpu=False)
    monkeypatch.setattr(of_training, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="'adamw_8bit': needs a GPU, and this run is on the CPU"):
        of_training.check_training(settings(optimizer="adamw_8bit"), cpu=True)
    of_training.check_training(settings(optimizer="adamw_8bit"), cpu=False)
    with pytest.raises(ValueError, match="train.lr_scheduler = 'cosin': must be one of linear, cosine"):
        of_training.check_training(settings(lr_scheduler="cosin"), cpu=True)


def test_every_optimiser_has_its_name_in_transformers():
    assert set(of_training._OPTIMIZERS) == set(OPTIMIZERS)
    names = {kind.value for kind in OptimizerNames}
    assert set(of_training._OPTIMIZERS.values()) <= names
