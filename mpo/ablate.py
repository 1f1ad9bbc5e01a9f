"""Runs the runs of an ablation: what they share once, each artifact by one process at a time.

The unit of work is a step of a run: what it shares with others (candidates, scores, the base model's held-out
samples), then the rest. A step starts when nothing that it has to make is being made by another, so processes
wait for each other as little as may be; across machines the leases of the store do the same.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mpo.ablation import Ablation, Member
from mpo.artifacts import Run, resolve
from mpo.store import locked
from mpo.timing import estimate, rates

MODULES = [
    "torch",
    "diffusers",
    "transformers",
    "mpo.pipeline",
    "mpo.report",
]  # loaded once for all

console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Job:
    """A member with the artifacts that it needs."""

    member: Member
    run: Run

    def todo(self, shared: bool | None = None) -> dict[str, str]:
        """Name -> artifact of what is still to make: of what is shared, of the rest, or of all."""
        made = self.run.artifacts
        first = made.rounds[0]
        common = (first.candidates, first.scores, made.base, made.base_scores, made.base_facts)
        return {
            name: artifact.name
            for name, artifact in made.items()
            if not artifact.done and (shared is None or (artifact in common) == shared)
        }


def jobs(members: Sequence[Member], now: bool = True) -> list[Job]:
    """The members with their artifacts; with `now=False` as `mpo plan` finds them."""
    return [Job(member, resolve(member.config, now)) for member in members]


def print_plan(ablation: Ablation, found: Sequence[Job], parallel: int) -> None:
    """Print which artifacts the runs need, which are shared, which are there, and how long the rest takes."""
    names = list(dict.fromkeys(name for job in found for name, _ in job.run.artifacts.items()))
    known = rates(Path(found[0].run.config.store))
    table = Table("artifact", "runs", "different", "there", "to make", "one process", title=ablation.name)
    seconds: float | None = 0.0
    seen: set[str] = set()
    for name in names:
        makers = [job for job in found if name in dict(job.run.artifacts.items())]
        owners = {dict(job.run.artifacts.items())[name].name: job for job in makers}
        to_make = [job for key, job in owners.items() if name in job.todo() and key not in seen]
        seen |= set(owners)
        times = [estimate(job.run, [name], known) for job in to_make]
        took = None if None in times else sum(times)
        seconds = None if seconds is None or took is None else seconds + took
        there = len(owners) - sum(name in job.todo() for job in owners.values())
        cells = (str(len(makers)), str(len(owners)), str(there), str(len(to_make)), duration(took))
        table.add_row(name.replace("_", " "), *cells)
    console.print(table)
    arms = len({job.member.arm.name for job in found})
    done = sum(not job.todo() for job in found)
    console.print(f"{len(found)} runs of {arms} arms, {done} complete; base arm: {ablation.arms()[0].name}")
    if seconds is None:
        console.print("time: unknown until the store has a run of each kind of work; one arm tells it")
    else:
        console.print(f"time: {_time(seconds, parallel, found)}")
    for line in hints(found):
        console.print(f"hint: {line}")


def _time(seconds: float, parallel: int, found: Sequence[Job]) -> str:
    """How long it takes: only GPUs of their own make several processes faster, cores are shared."""
    one = f"about {duration(seconds)} in one process"
    if parallel == 1:
        return one
    on_cpu = all(job.run.config.generator.device == "cpu" for job in found)
    if gpus := min(parallel, len(found), 0 if on_cpu else len(_devices())):
        return (
            f"{one}, at best {duration(seconds / gpus)} in {parallel} on {gpus} GPU{'s' if gpus > 1 else ''}"
        )
    return f"{one}, about as long in {parallel}: they share the cores"


def hints(found: Sequence[Job]) -> list[str]:
    """Where arms make anew what they could share."""
    counts = {job.run.config.generate.candidates for job in found}
    if len(counts) > 1:
        return [
            f"arms differ in generate.candidates, so each samples and scores anew; with generate.candidates="
            f"{max(counts)} for all and pairs.candidates for the arms they do so once"
        ]
    return []


def duration(seconds: float | None) -> str:
    """Seconds for people: 45 s, 12 min, 3.5 h."""
    if seconds is None:
        return "?"
    for unit, size, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{seconds / size:.2g} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.2g} days"


@dataclass
class _Step:
    job: Job
    shared: bool

    @property
    def what(self) -> str:
        return "what is shared" if self.shared else "the rest"


@dataclass
class _Worker:
    step: _Step
    process: multiprocessing.Process
    answer: Connection
    slot: int
    begun: float


def run_all(found: Sequence[Job], parallel: int) -> dict[str, str]:
    """Make what is missing, `parallel` processes at once. Returns run -> why, for those that failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    threads = max(1, len(os.sched_getaffinity(0)) // parallel) if parallel > 1 else None
    if threads and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    devices = _devices() if parallel > 1 else []
    waiting = [_Step(job, True) for job in found] + [_Step(job, False) for job in found]
    working: list[_Worker] = []
    failed: dict[str, str] = {}
    try:
        while waiting or working:
            free = sorted(set(range(parallel)) - {worker.slot for worker in working})
            while free and (step := _next(waiting, working, failed)):
                working.append(_start(context, step, free[0], threads, devices))
                free.pop(0)
            if not working:
                if waiting:
                    raise RuntimeError(f"{waiting[0].job.run.config.name}: cannot start, though nothing runs")
                break
            ready = wait([worker.process.sentinel for worker in working])
            for worker in [worker for worker in working if worker.process.sentinel in ready]:
                working.remove(worker)
                _finish(worker, failed, waiting, working)
    finally:
        for worker in working:
            worker.process.terminate()
        for worker in working:
            worker.process.join()
    return failed


def _next(waiting: list[_Step], working: Sequence[_Worker], failed: dict[str, str]) -> _Step | None:
    """Take the first step that can start; steps with nothing to do, or of failed runs, are dropped."""
    busy = {name for worker in working for name in worker.step.job.todo(worker.step.shared).values()}
    at_work = {id(worker.step.job) for worker in working}
    for step in list(waiting):
        job, todo = step.job, set(step.job.todo(step.shared).values())
        if job.run.config.name in failed or (step.shared and not todo):
            waiting.remove(step)
        elif not todo:
            waiting.remove(step)
            job.run.publish()
        elif not (todo & busy or id(job) in at_work or (not step.shared and job.todo(True))):
            waiting.remove(step)
            return step
    return None


def _start(context, step: _Step, slot: int, threads: int | None, devices: Sequence[str]) -> _Worker:
    ours, theirs = context.Pipe(duplex=False)
    device = devices[slot % len(devices)] if devices else None
    arguments = (step.job.member.config, step.shared, theirs, threads, device)
    process = context.Process(target=_work, args=arguments)
    process.start()
    theirs.close()
    return _Worker(step, process, ours, slot, time.monotonic())


def _finish(worker: _Worker, failed: dict[str, str], waiting: Sequence[_Step], working) -> None:
    job, name = worker.step.job, worker.step.job.run.config.name
    worker.process.join()
    try:
        reason = worker.answer.recv()
    except EOFError:  # killed before it could say anything
        reason = f"its process ended with exit code {worker.process.exitcode}"
    if reason:
        failed[name] = reason
        console.print(f"{name}: failed: {reason}; its log is {job.run.folder / 'log.txt'}", markup=False)
        return
    left = len({step.job.run.config.name for step in (*waiting, *(other.step for other in working))})
    took = duration(time.monotonic() - worker.begun)
    console.print(f"{name}: {worker.step.what} in {took}; {left} runs to go", markup=False)


def _devices() -> list[str]:
    """The GPUs that processes are spread over, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True).stdout
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def _work(config, shared: bool, answer: Connection, threads: int | None, device: str | None) -> None:
    """One step, in a process of its own that ends with the ablation's."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    import torch

    from mpo.pipeline import run_shared, run_stages

    if threads:
        torch.set_num_threads(threads)
    try:
        with locked(folder / ".lock"):
            run = resolve(config)
            run_shared(run) if shared else run_stages(run)
        answer.send("")
    except (ValueError, OSError) as error:
        print(f"mpo: {error}", file=sys.stderr)
        answer.send(" ".join(str(error).split()) or type(error).__name__)
    except BaseException as error:
        traceback.print_exc()
        with contextlib.suppress(OSError):
            answer.send(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
