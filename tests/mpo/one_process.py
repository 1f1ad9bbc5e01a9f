"""One of several processes that train the tiny model: PIPELINE FOLDER MODE MICRO STEPS [RESUME].

Run by test_trainer_processes.py, alone and under a launcher; process 0 leaves the losses and the trained
parameters in FOLDER.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_pipelines import generator_config  # noqa: E402

from generators.adapters import FullTuning, LoraTuning  # noqa: E402
from generators.base import Conditioning  # noqa: E402
from generators.build import build_generator  # noqa: E402
from mpo.config import TrainConfig  # noqa: E402
from mpo.preference_data import PreferencePairs  # noqa: E402
from mpo.trainer import DiffusionDPOTrainer, last_checkpoint  # noqa: E402
from mpo.training_arguments import training_arguments  # noqa: E402


def main(pipeline, folder, mode, micro, steps, resume=False):
    generator = build_generator(generator_config("stable_diffusion", pipeline), denoiser_only=True)
    tuning = LoraTuning(generator, rank=4) if mode == "lora" else FullTuning(generator)
    draw = torch.Generator().manual_seed(3)
    pairs = PreferencePairs(
        torch.randn(8, 4, 8, 8, generator=draw),
        Conditioning({"prompt_embeds": torch.randn(2, 16, 32, generator=draw)}),
        [0, 1, 2, 4, 5, 6],
        [3, 2, 3, 7, 4, 7],
        [0, 0, 0, 1, 1, 1],
        list("abcdef"),
    )
    train = TrainConfig(
        beta=200.0, learning_rate=1e-3, steps=steps, batch_size=4, micro_batch_size=micro, save_steps=2
    )
    processes = int(os.environ.get("WORLD_SIZE", 1))
    arguments = training_arguments(
        train, folder, 0, processes, use_cpu=True, disable_tqdm=True, logging_steps=1
    )
    run = DiffusionDPOTrainer(tuning, arguments, pairs)
    run.train(resume_from_checkpoint=str(last_checkpoint(folder)) if resume else None)
    if run.is_world_process_zero():
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        Path(folder, "losses.json").write_text(json.dumps(losses))
        trained = {n: p.detach() for n, p in generator.model.named_parameters() if p.requires_grad}
        save_file(trained, Path(folder, "trained.safetensors"))


if __name__ == "__main__":
    pipeline, folder, mode, micro, steps, *resume = sys.argv[1:]
    main(pipeline, folder, mode, int(micro), int(steps), bool(resume))
    PartialState().destroy_process_group()  # its threads must end before the interpreter does
