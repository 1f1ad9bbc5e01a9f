"""A training step of DiffusionDPOTrainer against the plain way, side by side: seconds and peak memory.

    python benchmarks/train_step.py [--models "unet mid"] [--modes lora full] [--batch 16] [--micro 2]

The plain way is the loop of the training scripts that people share: accelerate, a DataLoader, AdamW and a
schedule as they come, loss and accuracy logged. It keeps a second copy of the denoiser as the reference,
holds VAE and text encoder in memory, and encodes pictures and prompts at every step. Ours reads both from
what was stored, takes the reference from the adapter's switch where there is one, fuses the optimiser and
lays a UNet's weights out channels last; `--tuned-plain` gives these last two to the plain way as well. Both
take the same pairs, clipping and micro-batches, whose gradients a step adds up. Each runs in a process of its
own, a step in turn; seconds are medians of that process's own CPU time (of the clock on a GPU). Two processes
of one program differ by some percent, so that all is repeated with new ones. Peak memory is taken over a few
more steps of each. Models have random weights.
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
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from random_pipelines import MEDIA, SIZES, save_pipeline
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader
from transformers import TrainerCallback, get_scheduler

sys.path.insert(0, str(Path(__file__).parents[1]))
from generators.adapters import Denoiser, FullTuning, LoraTuning  # noqa: E402
from generators.base import Conditioning  # noqa: E402
from generators.build import build_generator  # noqa: E402
from mpo.config import TrainConfig  # noqa: E402
from mpo.preference_data import PreferencePairs  # noqa: E402
from mpo.trainer import DiffusionDPOTrainer  # noqa: E402
from mpo.training_arguments import training_arguments  # noqa: E402

WAYS = ("ours", "plain")
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


@dataclass(frozen=True)
class Case:
    """A row of the table: what both ways train."""

    name: str
    settings: SimpleNamespace
    mode: str
    batch: int
    micro: int
    tuned_plain: bool


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
        if case.tuned_plain:
            for model in (self.generator.model, self.reference):
                Denoiser(self.generator, model).channels_last()
        self.media, self.prompts = inputs(case.name)
        self.trained = [p for p in self.generator.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.trained, lr=RATE, fused=case.tuned_plain or None)
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


def seconds(case: Case, steps: int) -> dict[str, list[dict[str, float]]]:
    """The parts of every step after warming up, of both ways, whose steps alternate."""
    found = {way: [] for way in WAYS}
    running = {way: begin(_in_turn, case, way, WARM_UP + steps) for way in WAYS}
    for _ in range(WARM_UP + steps):
        for way, (_, pipe) in running.items():
            pipe.send("your turn")
            found[way].append(pipe.recv())
    for process, _ in running.values():
        process.join()
    return {way: rows[WARM_UP:] for way, rows in found.items()}


def _in_turn(pipe, case: Case, way: str, steps: int) -> None:
    runner = Ours(case, store(case)) if way == "ours" else Plain(case)
    runner.run(steps, pipe.send, pipe.recv)


def peak_bytes(case: Case) -> dict[str, float]:
    """By way, the most bytes that it held during a step."""
    found = {}
    for way in WAYS:
        process, pipe = begin(_peak, case, way)
        found[way] = pipe.recv()
        process.join()
    return found


def _peak(pipe, case: Case, way: str) -> None:
    """The most memory that the process held during a step beyond what it held before loading any model."""
    stored = store(case) if way == "ours" else None
    gc.collect()
    base = 0 if GPU else _resident("VmRSS")
    runner = Ours(case, stored) if way == "ours" else Plain(case)
    peaks = []

    def told(_):
        peaks.append(torch.cuda.max_memory_allocated() if GPU else _resident("VmHWM") - base)
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew

    runner.run(WARM_UP + 2, told, lambda: None)
    pipe.send(max(peaks[WARM_UP:]))


def _resident(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def _child(target, pipe, arguments) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the trainer's own lines
    target(pipe, *arguments)


def begin(target, *arguments):
    """Start `target(pipe, *arguments)` in a process of its own; the process, and our end of the pipe."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(target, theirs, arguments))
    process.start()
    theirs.close()
    return process, ours


def _outside(step: dict[str, float]) -> float:
    """The share of a step outside the models: draws, loss, clipping, the optimiser, the loop itself."""
    return 1 - sum(seconds for part, seconds in step.items() if part != "step") / step["step"]


def _saved(repeat: dict[str, list[dict[str, float]]]) -> float:
    """What a step of ours saves, as a share of what VAE and text encoder take in the plain way."""
    steps = zip(repeat["ours"], repeat["plain"], strict=True)
    return statistics.median((p["step"] - o["step"]) / (p["VAE"] + p["text"]) for o, p in steps)


def line(case: Case, repeats: list[dict[str, list[dict[str, float]]]], memory: dict[str, float]) -> str:
    """A row of the table."""
    both = {way: [row for repeat in repeats for row in repeat[way]] for way in WAYS}
    median = {
        way: {part: statistics.median(row.get(part, 0.0) for row in rows) for part in PARTS}
        for way, rows in both.items()
    }
    ours, plain = median["ours"], median["plain"]
    outside = {way: statistics.median(_outside(row) for row in rows) for way, rows in both.items()}
    saved = [_saved(repeat) for repeat in repeats]
    spread = statistics.stdev(saved) / len(saved) ** 0.5 if len(saved) > 1 else float("nan")
    cells = [
        case.name,
        case.mode,
        f"{ours['step']:.3f}",
        f"{plain['step']:.3f}",
        f"{ours['step'] / plain['step']:.2f}",
        *(f"{plain[part]:.3f}" for part in ("policy", "reference", "VAE", "text")),
        f"{statistics.fmean(saved):.2f} ± {spread:.2f}",
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
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="of these steps, in new processes")
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--micro", type=int, default=2, help="pairs a forward pass")
    parser.add_argument(
        "--tuned-plain", action="store_true", help="the plain way with our optimiser and layout of weights"
    )
    parser.add_argument("--raw", type=Path, help="also write every step's seconds there, as JSON")
    args = parser.parse_args()
    print(HEAD, "|" + " --- |" * HEAD.count(" |"), sep="\n", flush=True)
    raw = {}
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            settings = save_pipeline(name, Path(folder))
            for mode in args.modes:
                case = Case(name, settings, mode, args.batch, args.micro, args.tuned_plain)
                repeats = [seconds(case, args.steps) for _ in range(args.repeats)]
                memory = peak_bytes(case)
                raw[f"{name} {mode}"] = {"seconds": repeats, "memory": memory}
                print(line(case, repeats, memory), flush=True)
    if args.raw:
        args.raw.write_text(json.dumps(raw))


if __name__ == "__main__":
    main()
