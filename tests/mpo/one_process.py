"""One of the processes that train a tiny model in test_trainer_processes.py."""

from __future__ import annotations

import json
import os
import signal

import torch
from accelerate import PartialState
from tiny_pipelines import generator_config
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from generators.adapters import FullTuning, LoraTuning
from generators.base import Conditioning
from generators.build import build_generator
from mpo.config import TrainConfig
from mpo.preference_data import PreferencePairs
from mpo.trainer import DiffusionDPOTrainer, last_checkpoint
from mpo.training_arguments import training_arguments

SHAPES = {"stable_diffusion": (4, 8, 8), "wan": (16, 3, 2, 4)}  # of a latent


def run(environment, *arguments):
    """`main` in a process of its own, among those that `environment` speaks of."""
    os.environ |= environment
    torch.set_num_threads(1)
    main(*arguments)
    PartialState().destroy_process_group()  # its threads must end before the interpreter does


def main(family, pipeline, folder, mode, micro, die_at=None):
    """Train 4 steps from the last checkpoint in `folder`, if any, or die in step `die_at`.

    Process 0 leaves the result in `folder`, and in losses.json all losses and the share of each model that it
    held itself.
    """
    generator = build_generator(generator_config(family, pipeline), denoiser_only=True)
    tuning = LoraTuning(generator, rank=4) if mode == "lora" else FullTuning(generator)
    draw = torch.Generator().manual_seed(3)
    pairs = PreferencePairs(
        torch.randn(8, *SHAPES[family], generator=draw),
        Conditioning({"prompt_embeds": torch.randn(2, 16, 32, generator=draw)}),
        [0, 1, 2, 4, 5, 6],
        [3, 2, 3, 7, 4, 7],
        [0, 0, 0, 1, 1, 1],
        list("abcdef"),
    )
    train = TrainConfig(
        beta=200.0,
        learning_rate=1e-3,
        steps=4,
        batch_size=4,
        micro_batch_size=micro,
        save_steps=2,
    )
    processes = int(os.environ.get("WORLD_SIZE", 1))
    arguments = training_arguments(
        train, folder, 0, processes, use_cpu=True, disable_tqdm=True, logging_steps=1
    )
    trainer = DiffusionDPOTrainer(tuning, arguments, pairs, [Die(die_at)])
    begun = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=begun and str(begun))
    trainer.export(folder / "result")
    models = [tuning.policy] + ([tuning.frozen] if mode == "full" else [])
    report = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "held": [held_share(model) for model in models],
        "delta": trainer.watch.delta,  # that `beta: auto` would follow
    }
    if trainer.is_world_process_zero():
        (folder / "losses.json").write_text(json.dumps(report))


def held_share(model):
    """The share of a model's elements that lie on this process."""
    parameters = list(model.parameters())
    local = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
    return local / sum(p.numel() for p in parameters)


class Die(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
