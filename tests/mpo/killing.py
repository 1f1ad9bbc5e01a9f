"""Runs of the pipeline in processes of their own, and ways to kill them at a chosen moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

MODULES = ["torch", "diffusers", "transformers", "mpo.pipeline", "mpo.report"]


def start(config: Path, *words: str, die: str | None = None, before: bool = True) -> int:
    """`mpo run config words...` in a new process; its exit code. What it prints goes to `config`.log.

    `die` names a file: the process kills itself (SIGKILL) before, or else after, that file gets its name.
    Processes are forked from a server that has the libraries imported already.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    process = context.Process(target=_run, args=({}, config, words, die, before))
    process.start()
    process.join()
    return process.exitcode


def start_two(config: Path, *words: str, die: str | None = None) -> list[int]:
    """Two processes share a run; the second kills itself before the file `die` gets its name. Exit codes.

    The first is ended as a launcher would end it, if it has not seen the other die.
    """
    first, second = together(_run, (config, words, None, True), (config, words, die, True))
    second.join()
    first.join(60)
    first.terminate()
    first.join()
    return [first.exitcode, second.exitcode]


def together(target, *calls: tuple, **environment: str) -> list[multiprocessing.Process]:
    """Start a process for each of `calls`, with `environment` and what lets them find each other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = environment | {
        "WORLD_SIZE": f"{len(calls)}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    processes = []
    for rank, call in enumerate(calls):
        own = environment | shared | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
        processes.append(context.Process(target=target, args=(own, *call)))
        processes[-1].start()
    return processes


def complaint(config: Path) -> str:
    """What the run refused to do and why: the one line of its own that it ended with."""
    lines = config.with_suffix(".log").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("mpo: ") and not line.startswith("mpo: warning: "))
    return line


def _run(
    environment: dict[str, str], config: Path, words: tuple[str, ...], die: str | None, before: bool
) -> None:
    os.environ |= environment
    import torch
    from transformers import TrainerState

    from mpo.cli import main

    with config.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    os.environ.pop("WANDB_SERVICE", None)  # one of its own, which ends with it, as a command has
    if die is not None:
        os.replace = _deadly(os.replace, lambda source, target: target, die, before)
        TrainerState.save_to_json = _deadly(TrainerState.save_to_json, lambda state, path: path, die, before)
    sys.argv = ["mpo", "run", str(config), *words]
    main()


def _deadly(act, path_of, name: str, before: bool):
    def deadly(*args):
        doomed = str(path_of(*args)).endswith(name)
        if not (doomed and before):
            act(*args)
        if doomed:
            os.kill(os.getpid(), signal.SIGKILL)

    return deadly


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a run's results consist of, by its path in the store."""
    kinds = (".png", ".parquet", ".safetensors", ".json")
    files = (
        file for file in sorted(folder.rglob("*")) if file.suffix in kinds and "checkpoints" not in file.parts
    )
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
