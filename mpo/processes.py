"""One or several processes making an artifact together: who is main, who does what, when it is complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mpo.store import Artifact

# The others wait while the main process pairs or writes a report, and while one has the slower shards.
_PATIENCE = timedelta(days=7)


def join(device: str) -> PartialState:
    """This process among those that the launcher started; alone where it started none.

    ValueError for DeepSpeed without a GPU, where accelerate would go on with DDP and not say so.
    """
    # accelerate joins processes on CPUs only when told that it is on one.
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    process = PartialState(cpu=on_cpu, timeout=_PATIENCE)
    if process.device.type == "cpu" and os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ValueError("DeepSpeed needs GPUs: use configs/accelerate/ddp.yaml or fsdp2.yaml on CPUs")
    return process


def share(count: int, process: PartialState) -> range:
    """Which of `count` shards this process makes."""
    return range(process.process_index, count, process.num_processes)


def make(
    artifact: Artifact, process: PartialState, work: Callable[[], Mapping[str, Any] | None]
) -> Mapping[str, Any]:
    """Complete `artifact` by `work`, unless it is complete, and return the facts in its marker.

    Every process calls this. All of them work; the main one holds the artifact's lock against other runs, and
    its facts are those that are kept.
    """
    if not _agreed(artifact.done, process):
        with artifact.lock() if process.is_main_process else nullcontext():
            if not _agreed(artifact.done, process):  # another run may have made it while this one waited
                artifact.folder.mkdir(parents=True, exist_ok=True)
                try:
                    facts = work()
                except BaseException:
                    with suppress(OSError):  # not empty: what was made is kept
                        artifact.folder.rmdir()
                    raise
                process.wait_for_everyone()
                if process.is_main_process:
                    artifact.finish(facts or {})
            process.wait_for_everyone()
    return artifact.facts()


def _agreed(answer: bool, process: PartialState) -> bool:
    """The main process's answer, so that no process goes another way than the rest."""
    return broadcast_object_list([answer])[0] if process.num_processes > 1 else answer
