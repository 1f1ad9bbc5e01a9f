"""What each process of a run will hold in memory, estimated from configs and headers. Imports no torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mpo.config import ConfigError, RunConfig
from mpo.model_size import DENOISERS, ModelSize

MOMENTS = {"adamw": 8, "adamw_8bit": 2, "paged_adamw": 8, "paged_adamw_8bit": 2, "adafactor": 0}  # bytes each
_BFLOAT16 = {"sample": ("generator.dtype", "bfloat16"), "score": ("reward.dtype", "bfloat16")}
_ON_GPUS = "shard it over GPUs with MPO_ACCELERATE=configs/accelerate/fsdp2.yaml"


@dataclass(frozen=True)
class Sharding:
    """What of training is shared out among processes: gradients and optimiser, and by FSDP the weights too,
    frozen ones among them."""

    name: str
    processes: int
    weights: bool


@dataclass(frozen=True)
class Training:
    """Bytes that a process holds while it trains."""

    frozen: float  # weights that do not change: the base under an adapter, or the reference
    trained: float  # weights, their gradients, and the optimiser's moments
    activations: float | None  # of one micro-batch; None where the architecture is not known

    @property
    def total(self) -> float:
        return self.frozen + self.trained + (self.activations or 0)


def trained_parameters(config: RunConfig, generator: ModelSize) -> int:
    """How many numbers training changes: the adapter's, or all of the denoiser."""
    if config.train.mode == "lora":
        return config.train.lora.rank * generator.adapted
    return generator.denoiser


def training(config: RunConfig, generator: ModelSize, shards: Sharding | None = None) -> Training:
    """The need of training on the winners and losers of a micro-batch at once.

    Not counted: the block that FSDP gathers whole while it works, and buffers of communication.
    """
    train, processes = config.train, shards.processes if shards else 1
    of_weights = processes if shards and shards.weights else 1
    held = 4 / of_weights + (4 + MOMENTS[train.optimizer]) / processes  # float32 weight; gradient, moments
    trained = trained_parameters(config, generator) * held
    if train.mode == "lora":
        frozen = generator.bytes(config.generator.dtype, *DENOISERS)
    else:  # a full fine-tune is in float32, and so is its reference
        frozen = 0 if train.loss == "mapo" else generator.bytes("float32", *DENOISERS)
    halved = train.precision != "no" or (train.mode == "lora" and config.generator.dtype != "float32")
    each = generator.activations[train.gradient_checkpointing] if generator.activations else None
    kept = each and each * 2 * train.micro_batch_size * (2 if halved else 4)
    return Training(frozen / of_weights, trained, kept)


# ---- the processes and their device ----


def sharding() -> Sharding | None:
    """How training will be sharded when launch.sh is given the same environment; None where it is not.

    ConfigError that names the variable for one that launch.sh would refuse.
    """
    asked, nodes = _asked("MPO_PROCESSES"), _asked("MPO_NODES") or 1
    file = os.environ.get("MPO_ACCELERATE")
    if not file:
        return None
    if not Path(file).is_file():
        raise ConfigError(f"MPO_ACCELERATE={file}: no such file; there are those in configs/accelerate/")
    try:
        kind = yaml.safe_load(Path(file).read_text(encoding="utf-8"))["distributed_type"]
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError):
        raise ConfigError(f"MPO_ACCELERATE={file}: must be YAML with a distributed_type") from None
    processes = (asked or len(_gpus()) or 1) * nodes
    if processes == 1 or kind not in ("FSDP", "DEEPSPEED"):
        return None
    return Sharding("FSDP2" if kind == "FSDP" else "ZeRO-2", processes, weights=kind == "FSDP")


def device_memory(config: RunConfig) -> tuple[str, float] | None:
    """(name, bytes) of what one process has: the smallest GPU, or its share of the host's memory on a CPU.

    None where a GPU is asked for and none is seen.
    """
    if _on_gpu(config):
        return min(_gpus(), key=lambda gpu: gpu[1])
    if config.generator.device == "cuda":
        return None
    processes = _asked("MPO_PROCESSES") or 1
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / processes
    return "this machine's memory" + (f" for each of {processes} processes" if processes > 1 else ""), host


def _on_gpu(config: RunConfig) -> bool:
    return config.generator.device != "cpu" and bool(_gpus())


def _asked(name: str) -> int | None:
    """The number that an environment variable holds; None where it is not set."""
    text = os.environ.get(name)
    if text and not (text.isdecimal() and int(text)):
        raise ConfigError(f"{name}={text}: must be a whole number from 1")
    return int(text) if text else None


def _gpus() -> list[tuple[str, float]]:
    """(name, bytes) of every GPU that nvidia-smi tells of, as far as CUDA_VISIBLE_DEVICES shows them."""
    query = ["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # no driver, or one that does not answer
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = []
    for line in told.splitlines():
        index, name, mebibytes = (part.strip() for part in line.split(","))
        if visible is None or not visible.replace(",", "").isdigit() or index in visible.split(","):
            found.append((name, float(mebibytes) * 2**20))
    return found


# ---- told ----


def memory_lines(config: RunConfig, generator: ModelSize | None, judge: ModelSize | None) -> list[str]:
    """What each process holds, a line for each phase, and a warning for one that does not fit."""
    lines, shards = [], sharding()
    needs: dict[str, Callable[[RunConfig], float]] = {}  # phase -> bytes that a config needs in it
    if generator and generator.denoiser:
        needs["sample"] = lambda of: generator.bytes(of.generator.dtype)
        needs["train"] = lambda of: training(of, generator, shards=shards).total
        weights = f"{size_of(needs['sample'](config))} of weights to sample"
        lines.append(f"{weights}, activations and decoding not counted ({config.generator.path})")
        lines.append(_training_line(config, generator, shards))
    if judge and judge.parameters:
        needs["score"] = lambda of: judge.bytes(of.reward.dtype)
        weights = f"{size_of(needs['score'](config))} of weights to score"
        lines.append(f"{weights}, activations not counted ({config.reward.judge})")
    paths = (
        ("generator.path", config.generator.path, "sample"),
        ("reward.judge", config.reward.judge, "score"),
    )
    for setting, path, phase in paths:
        if phase not in needs:
            lines.append(
                f"unknown for {setting}: {path} is not here, or not all of it; a run brings models of the hub"
            )
    device = device_memory(config)
    if device is None:
        return [*lines, "generator.device = cuda, but no GPU is seen here"]
    name, there = device
    lines.append(f"{size_of(there)} in {name}")
    for phase, need in needs.items():
        if need(config) > there:
            gpus = _ON_GPUS if phase == "train" and not shards and _on_gpu(config) else ""
            lines.append(f"WARNING: will not fit to {phase}: {_advice(config, phase, need, there, gpus)}")
    return lines


def _training_line(config: RunConfig, generator: ModelSize, shards: Sharding | None) -> str:
    train, count = config.train, trained_parameters(config, generator)
    need = training(config, generator, shards=shards)
    frozen = "frozen weights" if train.mode == "lora" else "the reference"
    parts = [f"{size_of(need.frozen)} of {frozen}"] if need.frozen else []
    parts.append(f"{size_of(need.trained)} of {count:,} trained parameters with gradients, {train.optimizer}")
    known = need.activations is not None
    told = f"about {size_of(need.activations)} of" if known else "unknown"
    checkpointed = ", checkpointed" if train.gradient_checkpointing else ""
    parts.append(f"{told} activations of {2 * train.micro_batch_size} rows{checkpointed}")
    if shards:
        parts.append(f"sharded by {shards.name} over {shards.processes} processes")
    about = "about" if known else "at least"
    return f"{about} {size_of(need.total)} a process to train: {', '.join(parts)}"


def _advice(
    config: RunConfig, phase: str, need: Callable[[RunConfig], float], there: float, gpus: str
) -> str:
    """The fewest changes that let the phase fit into `there` bytes, those that cost least first; or what it
    needs with all that help."""
    rows, micro = "train.micro_batch_size", config.train.micro_batch_size

    def least(settings: Mapping[str, Any]) -> float:
        return need(_changed(config, {rows: 1, **settings}))

    chosen: dict[str, Any] = {}
    for key, value in [_BFLOAT16[phase]] if phase in _BFLOAT16 else _less_to_train(config):
        if least(chosen) > there and least(chosen | {key: value}) < least(chosen):
            chosen[key] = value
    for key in list(chosen):
        without = {name: value for name, value in chosen.items() if name != key}
        if least(without) <= there:
            chosen = without
    divisors = [part for part in range(micro, 0, -1) if micro % part == 0]
    fitting = next((part for part in divisors if least(chosen | {rows: part}) <= there), 1)
    if phase == "train" and fitting < micro:
        chosen[rows] = fitting
    settings = ", ".join(f"{key}={str(value).lower()}" for key, value in chosen.items())
    if least(chosen) <= there:
        return f"set {settings}" + (f", or {gpus}" if gpus and set(chosen) != {rows} else "")
    even = f"even with {settings} it needs {size_of(least(chosen))}; " if chosen else ""
    smaller = "a smaller judge" if phase == "score" else "a smaller model or size"
    return f"{even}take {smaller}" + (f", or {gpus}" if gpus else "")


def _less_to_train(config: RunConfig) -> list[tuple[str, Any]]:
    """Settings that make training need less, from what costs least to what costs most."""
    shards = sharding()
    return [
        ("train.gradient_checkpointing", True),
        ("train.precision", "bf16"),
        ("generator.dtype", "bfloat16"),
        *([("train.optimizer", "adamw_8bit")] if _on_gpu(config) else []),
        *([] if shards and shards.weights else [("train.optimizer", "adafactor")]),  # it cannot step those
        ("train.mode", "lora"),
        ("generator.dtype", "bfloat16"),  # the base under an adapter
    ]


def _changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The same config with other values of `section.name` settings."""
    for key, value in settings.items():
        section, name = key.split(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


def size_of(count: float) -> str:
    """Bytes in words, to three digits: 1.53 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
