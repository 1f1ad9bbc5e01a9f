"""A training step of DiffusionDPOTrainer against the plain way, side by side: seconds and peak memory.

    python benchmarks/train_step.py [--models "unet mid"] [--modes lora full] [--batch 16] [--micro 2]

The plain way keeps a second copy of the denoiser as the reference, holds VAE and text encoder in memory, and
encodes pictures and prompts at every step; ours reads both from what was stored, and takes the reference from
the adapter's switch where there is one. Both take the same pairs, noise, optimiser, autograd, layout of
weights, and micro-batches, whose gradients a step adds up. Steps of the two alternate in one process, seconds
are medians of that process's own CPU time (of the clock on a GPU), and each way's peak memory is taken in a
process of its own, over its steps. Models have random weights.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from PIL import Image
from random_pipelines import MEDIA, SIZES, save_pipeline
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))
from generators.adapters import Denoiser, FullTuning, LoraTuning  # noqa: E402
from generators.base import Conditioning  # noqa: E402
from generators.build import build_generator  # noqa: E402
from mpo.config import TrainConfig  # noqa: E402
from mpo.preference_data import PreferencePairs  # noqa: E402
from mpo.trainer import DiffusionDPOTrainer  # noqa: E402
from mpo.training_arguments import training_arguments  # noqa: E402

WARM_UP, PAIRS, BETA, RATE = 2, 6, 200.0, 1e-5
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


def tuned(generator, mode: str):
    return LoraTuning(generator, rank=16) if mode == "lora" else FullTuning(generator)


class Ours:
    """The trainer over stored latents; `steps` calls `between` after each step with its seconds and parts."""

    def __init__(self, name: str, settings, mode: str, batch: int, micro: int, stored) -> None:
        generator = build_generator(settings, denoiser_only=True)
        self.tuning, self.parts, self.batch, self.micro = tuned(generator, mode), Parts(), batch, micro
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

    def run(self, steps: int, between) -> None:
        parts = self.parts

        class Clock(TrainerCallback):
            def on_train_begin(self, *args, **kwargs):
                self.start = now()

            def on_step_end(self, *args, **kwargs):
                seconds = now() - self.start
                between({"step": seconds, **parts.take()})
                parts.take()
                self.start = now()

        train = TrainConfig(
            beta=BETA, learning_rate=RATE, steps=steps, batch_size=self.batch, micro_batch_size=self.micro
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

    def __init__(self, name: str, settings, mode: str, batch: int, micro: int, stored=None) -> None:
        self.generator, self.parts, self.at = build_generator(settings), Parts(), 0
        self.batch, self.micro = batch, micro
        self.reference = copy.deepcopy(self.generator.model).requires_grad_(False)
        if mode == "lora":
            LoraTuning(self.generator, rank=16)
        else:
            self.generator.model.requires_grad_(True)
        self.generator.model.train()
        for model in (self.generator.model, self.reference):
            Denoiser(self.generator, model).channels_last()
        self.media, self.prompts = inputs(name)
        trained = [p for p in self.generator.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, fused=True)
        self.trained = trained
        self.parts.watch(self.generator.model), self.parts.watch(self.reference)

    def run(self, steps: int, between) -> None:
        for _ in range(steps):
            start = now()
            self.step()
            between({"step": now() - start, **self.parts.take()})

    def step(self) -> None:
        for _ in range(self.batch // self.micro):
            loss = self.loss(self.micro) / (self.batch // self.micro)
            with self.parts.part("policy"):
                loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, count: int) -> torch.Tensor:
        """The loss of the next `count` pairs."""
        generator, schedule = self.generator, self.generator.schedule
        chosen = [(self.at + i) % PAIRS for i in range(count)]
        self.at += count
        with self.parts.part("VAE"):
            media = [self.media[2 * i] for i in chosen] + [self.media[2 * i + 1] for i in chosen]
            x0 = generator.encode(media).to(generator.device)
        with self.parts.part("text"):
            rows = generator.encode_prompts([self.prompts[i] for i in chosen])
            conditioning = Conditioning.cat([rows, rows]).to(generator.device)
        noise = torch.randn_like(x0[:count]).repeat(2, *[1] * (x0.dim() - 1))
        drawn = [schedule.sample_timesteps(torch.Generator().manual_seed(self.at + i)) for i in range(count)]
        timesteps = torch.cat(drawn).repeat(2).to(x0.device)
        x_t, target = schedule.add_noise(x0, noise, timesteps), schedule.target(x0, noise, timesteps)
        with torch.no_grad():
            reference = generator.predict(x_t, timesteps, conditioning, self.reference)
        error = (generator.predict(x_t, timesteps, conditioning) - target).square().flatten(1).mean(1)
        ref_error = (reference - target).square().flatten(1).mean(1)
        excess = error - ref_error
        return -logsigmoid(-0.5 * BETA * (excess[:count] - excess[count:])).mean()


def store(name: str, settings):
    generator = build_generator(settings)
    media, prompts = inputs(name)
    return generator.encode(media), generator.encode_prompts(prompts)


def seconds(
    name: str, settings, mode: str, batch: int, micro: int, steps: int
) -> dict[str, list[dict[str, float]]]:
    """The parts of every step after warming up, of both ways, whose steps alternate."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    stored = store(name, settings)
    plain = Plain(name, settings, mode, batch, micro)

    def between(parts):
        found["ours"].append(parts)
        plain.run(1, found["plain"].append)

    Ours(name, settings, mode, batch, micro, stored).run(WARM_UP + steps, between)
    return {way: rows[WARM_UP:] for way, rows in found.items()}


def peak_bytes(way: str, name: str, settings, mode: str, batch: int, micro: int) -> float:
    """The most memory that the process held during a step beyond what it held before loading any model."""
    stored = store(name, settings) if way == "ours" else None
    gc.collect()
    base = 0 if GPU else _resident("VmRSS")
    runner = (Ours if way == "ours" else Plain)(name, settings, mode, batch, micro, stored)
    peaks = []

    def between(_):
        peaks.append(torch.cuda.max_memory_allocated() if GPU else _resident("VmHWM") - base)
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew

    runner.run(WARM_UP + 2, between)
    return max(peaks[WARM_UP:])


def _resident(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def _child(target, arguments, pipe) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the trainer's own lines
    pipe.send(target(*arguments))
    pipe.close()


def alone(target, *arguments):
    """`target(*arguments)` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(target, arguments, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def _outside(step: dict[str, float]) -> float:
    """The share of a step outside the models: draws, loss, clipping, the optimiser, the loop itself."""
    return 1 - sum(seconds for part, seconds in step.items() if part != "step") / step["step"]


def line(name: str, mode: str, both: dict[str, list[dict[str, float]]], memory: dict[str, float]) -> str:
    """A row of the table."""
    median = {
        way: {part: statistics.median(row.get(part, 0.0) for row in rows) for part in PARTS}
        for way, rows in both.items()
    }
    ours, plain = median["ours"], median["plain"]
    outside = {way: statistics.median(_outside(row) for row in rows) for way, rows in both.items()}
    saved = statistics.median(
        (p["step"] - o["step"]) / (p["VAE"] + p["text"])
        for o, p in zip(both["ours"], both["plain"], strict=True)
    )
    cells = [
        name,
        mode,
        f"{ours['step']:.3f}",
        f"{plain['step']:.3f}",
        f"{ours['step'] / plain['step']:.2f}",
        *(f"{plain[part]:.3f}" for part in ("policy", "reference", "VAE", "text")),
        f"{saved:.2f}",
        f"{outside['ours']:.1%}",
        f"{outside['plain']:.1%}",
        f"{memory['ours'] / 1e6:.0f}",
        f"{memory['plain'] / 1e6:.0f}",
        f"{memory['ours'] / memory['plain']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


PARTS = ("step", "policy", "reference", "VAE", "text")
HEAD = (
    "| model | mode | step, s: ours | plain | ratio | plain's policy | reference | VAE | text "
    "| saved / (VAE + text) | outside the models: ours | plain | peak, MB: ours | plain | ratio |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--modes", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--micro", type=int, default=2, help="pairs a forward pass")
    parser.add_argument("--raw", type=Path, help="also write every step's seconds there, as JSON")
    args = parser.parse_args()
    print(HEAD, "|" + " --- |" * HEAD.count(" |"), sep="\n", flush=True)
    raw = {}
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            settings = save_pipeline(name, Path(folder))
            for mode in args.modes:
                both = alone(seconds, name, settings, mode, args.batch, args.micro, args.steps)
                memory = {
                    way: alone(peak_bytes, way, name, settings, mode, args.batch, args.micro)
                    for way in ("ours", "plain")
                }
                raw[f"{name} {mode}"] = {"seconds": both, "memory": memory}
                print(line(name, mode, both, memory), flush=True)
    if args.raw:
        args.raw.write_text(json.dumps(raw))


if __name__ == "__main__":
    main()
