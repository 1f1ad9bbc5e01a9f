"""The two ways of `train_step.py` of training a denoiser on pairs: the trainer, and the plain loop."""

from __future__ import annotations

import copy
import sys
import tempfile
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from random_pipelines import MEDIA
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader
from transformers import TrainerCallback, get_scheduler

sys.path.insert(0, str(Path(__file__).parents[1]))
from generators.adapters import FullTuning, LoraTuning  # noqa: E402
from generators.base import Conditioning  # noqa: E402
from generators.build import build_generator  # noqa: E402
from mpo.config import TrainConfig  # noqa: E402
from mpo.preference_data import PreferencePairs  # noqa: E402
from mpo.trainer import DiffusionDPOTrainer  # noqa: E402
from mpo.training_arguments import training_arguments  # noqa: E402

PAIRS, BETA, RATE = 6, 200.0, 1e-5
GPU = torch.cuda.is_available()


def now() -> float:
    if GPU:
        torch.cuda.synchronize()
        return perf_counter()
    return process_time()


class Parts:
    """Seconds of each part of the current step."""

    def __init__(self) -> None:
        self.of_step: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str):
        start = now()
        yield
        self.of_step[name] += now() - start

    def take(self) -> dict[str, float]:
        found, self.of_step = dict(self.of_step), defaultdict(float)
        return found

    def watch(self, model: torch.nn.Module) -> None:
        """Time the model's own forwards: the reference's are those without a gradient."""
        starts = []
        model.register_forward_pre_hook(lambda *_: starts.append(now()))

        def ended(*_):
            name = "policy" if torch.is_grad_enabled() else "reference"
            self.of_step[name] += now() - starts.pop()

        model.register_forward_hook(ended)


def inputs(name: str):
    """Pictures or clips [2 * PAIRS] and prompts [PAIRS], the same for both ways."""
    size = MEDIA[name.split()[0]]
    shape = (size["height"], size["width"], 3)
    random = np.random.default_rng(0)
    media = [
        random.integers(0, 256, (size.get("frames", 1), *shape), dtype=np.uint8) for _ in range(2 * PAIRS)
    ]
    if "frames" not in size:
        media = [Image.fromarray(clip[0]) for clip in media]
    return media, [
        f"a picture of the number {'one two three four five six'.split()[i]}" for i in range(PAIRS)
    ]


@dataclass(frozen=True)
class Case:
    """A row of the table: what both ways train."""

    name: str
    settings: SimpleNamespace
    mode: str
    batch: int
    micro: int
    fused_plain: bool


def tuned(generator, mode: str):
    return LoraTuning(generator, rank=16) if mode == "lora" else FullTuning(generator)


class Ours:
    """The trainer over stored latents."""

    def __init__(self, case: Case, stored) -> None:
        generator = build_generator(case.settings, denoiser_only=True)
        self.case, self.tuning, self.parts = case, tuned(generator, case.mode), Parts()
        latents, conditioning = stored
        even = list(range(0, 2 * PAIRS, 2))
        self.pairs = PreferencePairs(
            latents,
            conditioning,
            even,
            [row + 1 for row in even],
            list(range(PAIRS)),
            [f"pair {i}" for i in even],
        )
        self.parts.watch(generator.model)
        if self.tuning.frozen is not None:
            self.parts.watch(self.tuning.frozen.model)

    def run(self, steps: int, told, turn) -> None:
        """Wait for each step's `turn`, and call `told` with its seconds and parts."""
        parts = self.parts

        class Clock(TrainerCallback):
            def on_train_begin(self, *args, **kwargs):
                turn()
                self.start = now()

            def on_step_end(self, args, state, control, **kwargs):
                seconds = now() - self.start
                told({"step": seconds, **parts.take()})
                if state.global_step < steps:
                    turn()
                self.start = now()

        train = TrainConfig(
            beta=BETA,
            learning_rate=RATE,
            steps=steps,
            batch_size=self.case.batch,
            micro_batch_size=self.case.micro,
        )
        with tempfile.TemporaryDirectory() as folder:
            arguments = training_arguments(
                train, folder, 0, use_cpu=not GPU, disable_tqdm=True, save_strategy="no", logging_steps=10
            )
            trainer = DiffusionDPOTrainer(self.tuning, arguments, self.pairs, [Clock()])
            backward = trainer.accelerator.backward

            def timed_backward(*args, **kwargs):
                with parts.part("policy"):
                    backward(*args, **kwargs)

            trainer.accelerator.backward = timed_backward
            trainer.train()


class Plain:
    """The same training as a plain loop with a second copy of the model and all encoders."""

    def __init__(self, case: Case) -> None:
        self.generator, self.parts = build_generator(case.settings), Parts()
        self.accelerator = Accelerator(cpu=not GPU, gradient_accumulation_steps=case.batch // case.micro)
        self.reference = copy.deepcopy(self.generator.model).requires_grad_(False)
        if case.mode == "lora":
            LoraTuning(self.generator, rank=16)
        else:
            self.generator.model.requires_grad_(True)
        self.generator.model.train()
        self.media, self.prompts = inputs(case.name)
        self.trained = [p for p in self.generator.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.trained, lr=RATE, fused=case.fused_plain or None)
        order = [draw % PAIRS for draw in range(1000 * case.batch)]
        self.model, self.optimizer, self.scheduler, loader = self.accelerator.prepare(
            self.generator.model,
            optimizer,
            get_scheduler("constant", optimizer),
            DataLoader(order, case.micro, collate_fn=list),
        )
        self.batches, self.logged = iter(loader), []
        self.parts.watch(self.generator.model), self.parts.watch(self.reference)

    def run(self, steps: int, told, turn) -> None:
        for _ in range(steps):
            turn()
            start = now()
            self.step()
            told({"step": now() - start, **self.parts.take()})

    def step(self) -> None:
        stepped = False
        while not stepped:
            with self.accelerator.accumulate(self.model):
                loss, accuracy = self.loss(next(self.batches))
                with self.parts.part("policy"):
                    self.accelerator.backward(loss)
                stepped = self.accelerator.sync_gradients
                if stepped:
                    self.accelerator.clip_grad_norm_(self.trained, 1.0)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            self.logged.append({"loss": loss.detach().item(), "accuracy": accuracy.item()})

    def loss(self, chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of the pairs `chosen`, and the share of them told apart rightly."""
        generator, schedule, count = self.generator, self.generator.schedule, len(chosen)
        with self.parts.part("VAE"):
            media = [self.media[2 * i] for i in chosen] + [self.media[2 * i + 1] for i in chosen]
            x0 = generator.encode(media).to(generator.device)
        with self.parts.part("text"):
            rows = generator.encode_prompts([self.prompts[i] for i in chosen])
            conditioning = Conditioning.cat([rows, rows]).to(generator.device)
        noise = torch.randn_like(x0[:count]).repeat(2, *[1] * (x0.dim() - 1))
        timesteps = schedule.sample_timesteps(torch.default_generator, count).repeat(2).to(x0.device)
        x_t, target = schedule.add_noise(x0, noise, timesteps), schedule.target(x0, noise, timesteps)
        with torch.no_grad():
            reference = generator.predict(x_t, timesteps, conditioning, self.reference)
        error = (generator.predict(x_t, timesteps, conditioning) - target).square().flatten(1).mean(1)
        ref_error = (reference - target).square().flatten(1).mean(1)
        excess = error - ref_error
        margin = -0.5 * BETA * (excess[:count] - excess[count:])
        return -logsigmoid(margin).mean(), (margin > 0).float().mean()


def store(case: Case):
    generator = build_generator(case.settings)
    media, prompts = inputs(case.name)
    return generator.encode(media), generator.encode_prompts(prompts)
