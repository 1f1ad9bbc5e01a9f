"""A training step of DiffusionDPOTrainer against the plain way, side by side: seconds and peak memory.

    python benchmarks/train_step.py [--models "unet mid"] [--modes lora full] [--batch 16] [--micro 2]

The plain way is the loop of the training scripts that people share: accelerate, a DataLoader, AdamW and a
schedule as they come, loss and accuracy logged. It keeps a second copy of the denoiser as the reference,
holds VAE and text encoder in memory, and encodes pictures and prompts at every step. Ours reads both from
what was stored, takes the reference from the adapter's switch where there is one, and fuses the optimiser,
which `--fused-plain` gives to the plain way as well. Both take the same pairs, clipping and micro-batches,
whose gradients a step adds up. Each runs in a process of its own, a step in turn; seconds are medians of that
process's own CPU time (of the clock on a GPU). Two processes of one program differ by some percent, so that
all is repeated with new ones. Peak memory is taken over a few more steps of each. Models have random weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from random_pipelines import SIZES, save_pipeline
from training_ways import GPU, Case, Ours, Plain, store

WAYS = ("ours", "plain")
WARM_UP = 2
# For glibc: freed memory stays with the process. Else how often it is asked for anew, which can take 5 % of a
# step, depends on the sizes of what a process happened to free before.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


def seconds(case: Case, steps: int) -> dict[str, list[dict[str, float]]]:
    """The parts of every step after warming up, of both ways, whose steps alternate."""
    found = {way: [] for way in WAYS}
    with patch.dict(os.environ, KEEP_MEMORY):
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
    parser.add_argument("--fused-plain", action="store_true", help="fuse the optimiser of the plain way too")
    parser.add_argument("--raw", type=Path, help="also write every step's seconds there, as JSON")
    args = parser.parse_args()
    print(HEAD, "|" + " --- |" * HEAD.count(" |"), sep="\n", flush=True)
    raw = {}
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            settings = save_pipeline(name, Path(folder))
            for mode in args.modes:
                case = Case(name, settings, mode, args.batch, args.micro, args.fused_plain)
                repeats = [seconds(case, args.steps) for _ in range(args.repeats)]
                memory = peak_bytes(case)
                raw[f"{name} {mode}"] = {"seconds": repeats, "memory": memory}
                print(line(case, repeats, memory), flush=True)
    if args.raw:
        args.raw.write_text(json.dumps(raw))


if __name__ == "__main__":
    main()
