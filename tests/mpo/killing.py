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
    process = context.Process(target=_run, args=(config, words, die, before))
    process.start()
    process.join()
    return process.exitcode


def start_two(config: Path, *words: str, die: str) -> list[int]:
    """Two processes share a run; the second dies before `die` gets its name. Exit codes.

    The first is ended as a launcher would: after the shard that it was at.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank, doomed in enumerate((None, die)):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        arguments = (config, words, doomed, True, shared | place)
        processes.append(context.Process(target=_run, args=arguments))
        processes[-1].start()
    processes[1].join()
    processes[0].join(120)  # it waits for the other, if it has not seen it die
    processes[0].terminate()
    processes[0].join()
    return [process.exitcode for process in processes]


def complaint(config: Path) -> str:
    """What the run refused to do and why: the one line of its own that it ended with."""
    lines = [line for line in config.with_suffix(".log").read_text().splitlines() if line.startswith("mpo: ")]
    (line,) = lines
    return line


def _run(config: Path, words: tuple[str, ...], die: str | None, before: bool, environment=None) -> None:
    os.environ |= environment or {}
    import torch
    from transformers import TrainerState

    from mpo.cli import main

    with config.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
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
