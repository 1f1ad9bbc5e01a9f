"""A small trainer over the tiny Stable Diffusion, and what its tests look at."""

import torch
from tiny_pipelines import generator_config
from transformers import TrainerCallback

from generators.adapters import FullTuning, LoraTuning
from generators.build import build_generator
from mpo.config import LoraConfig, TrainConfig
from mpo.trainer import DiffusionDPOTrainer
from mpo.training_arguments import training_arguments

KIND = "stable_diffusion"


def settings(**changes):
    defaults = {
        "beta": 200.0,
        "learning_rate": 1e-3,
        "steps": 6,
        "batch_size": 4,
        "micro_batch_size": 4,
        "save_steps": 3,
        "logging_steps": 1,
        "lora": LoraConfig(rank=4, alpha=4),
    }
    return TrainConfig(**defaults | changes)


def trainer(tiny_pipeline, pairs, folder, mode="lora", callbacks=None, dropout=0.0, seed=0, **changes):
    generator = build_generator(generator_config(KIND, tiny_pipeline(KIND)), denoiser_only=True)
    tuning = LoraTuning(generator, rank=4, dropout=dropout) if mode == "lora" else FullTuning(generator)
    arguments = training_arguments(settings(**changes), folder, seed=seed, use_cpu=True, disable_tqdm=True)
    return DiffusionDPOTrainer(tuning, arguments, pairs, callbacks)


def trained(run):
    return {
        name: p.detach().clone()
        for name, p in run.tuning.generator.model.named_parameters()
        if p.requires_grad
    }


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def assert_equal(a, b):
    assert a.keys() == b.keys() and len(a) > 0
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Stop(TrainerCallback):
    """Stops as a killed run does, after `steps` steps: no final save."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.steps:
            raise KeyboardInterrupt
