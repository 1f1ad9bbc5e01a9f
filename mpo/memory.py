"""What each process of a run will hold in memory, estimated from configs and headers. Imports no torch.

Activations are fits to what autograd keeps of SD 1.5's UNet and the transformers of SD 3.5 and Wan, good to
about a third: of a transformer some 40 numbers a token, channel and layer, of a UNet some 10 a place, channel
and residual block, and 32 a transformer block. With checkpointing the inputs of each block remain, and all of
one block while it is recomputed.
"""

from __future__ import annotations

import math
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mpo.config import RunConfig

if TYPE_CHECKING:
    from mpo.plan import ModelSize

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DENOISERS = ("unet", "transformer")
MOMENTS = {"adamw": 8, "adamw_8bit": 2, "paged_adamw": 8, "paged_adamw_8bit": 2, "adafactor": 0}  # bytes each
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
LORA_TARGETS = {  # of the families whose own are others than _ATTENTION
    "flux": _ATTENTION + _ADDED,
    "stable_diffusion_3": tuple(f"attn.{name}" for name in _ATTENTION + _ADDED),
}
_LAYER = 40  # numbers that autograd keeps of a transformer's layer, a token and channel
_RESIDUAL = 10  # ... of a UNet's residual block, a place and channel
_KEPT = 1.2  # ... of a layer that is recomputed
_KEPT_UNET = 3.2


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


def lora_targets(config: RunConfig) -> tuple[str, ...]:
    """The ends of the names of the modules that get an adapter."""
    return tuple(config.train.lora.targets or LORA_TARGETS.get(config.generator.family, _ATTENTION))


def trained_parameters(config: RunConfig, generator: ModelSize) -> int:
    if config.train.mode == "lora":
        return config.train.lora.rank * generator.adapted
    return sum(generator.parameters.get(name, 0) for name in DENOISERS)


def training(
    config: RunConfig, generator: ModelSize, rows: int | None = None, shards: Sharding | None = None
) -> Training:
    """The need of training on `rows` rows at once: winners and losers of a micro-batch, if not given.

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
    rows = 2 * train.micro_batch_size if rows is None else rows
    each = generator.activations[train.gradient_checkpointing] if generator.activations else None
    return Training(frozen / of_weights, trained, each and each * rows * (2 if halved else 4))


# ---- architectures ----


def activations(denoiser: dict[str, Any], latent: tuple[int, int, int]) -> tuple[float, float] | None:
    """Numbers that autograd keeps of a row: without and with checkpointing. `latent`: frames, height, width.

    None for an architecture whose config has other names.
    """
    frames, height, width = latent
    if "block_out_channels" in denoiser:
        return _unet(denoiser, height * width)
    names = ("num_attention_heads", "attention_head_dim", "num_layers")
    heads, depth, layers = (denoiser.get(name) for name in names)
    if not (heads and depth and layers):
        return None
    layers += denoiser.get("num_single_layers") or 0
    patch, patch_frames = denoiser.get("patch_size") or 1, 1
    if isinstance(patch, list):
        patch_frames, patch = patch[0], patch[1]
    if denoiser.get("_class_name") == "FluxTransformer2DModel":
        patch = 2  # its latents are packed before it sees them
    tokens = math.ceil(frames / patch_frames) * (height // patch) * (width // patch)
    text = denoiser.get("max_text_seq_length") or (0 if frames > 1 else 333)
    layer = (tokens + text) * heads * depth
    return _LAYER * layer * layers, _KEPT * layer * layers + _LAYER * layer


def _unet(denoiser: dict[str, Any], places: int) -> tuple[float, float]:
    """Over the levels of a UNet, each at half the side of the one before it, down and up again."""
    channels, levels = denoiser["block_out_channels"], len(denoiser["block_out_channels"])
    down = denoiser.get("down_block_types") or [""] * levels
    blocks = denoiser.get("layers_per_block", 2)
    deep = denoiser.get("transformer_layers_per_block", 1)
    deep = deep if isinstance(deep, list) else [deep] * levels
    residual = attention = inputs = largest = 0.0
    for level, width in enumerate(channels):
        size = places / 4**level * width
        count = 2 * blocks + 1 + (2 if level == levels - 1 else 0)  # down, up, and the middle at the last
        residual += count * size
        inputs += count * size
        if "Attn" in down[level] or "Attention" in down[level]:
            attention += (2 * blocks + 1) * deep[level] * size
            inputs += (2 * blocks + 1) * size
            largest = max(largest, deep[level] * size)
    attention += deep[-1] * places / 4 ** (levels - 1) * channels[-1]  # the middle's
    block = 0.8 * _LAYER
    return _RESIDUAL * residual + block * attention, _KEPT_UNET * inputs + block * largest


def latent_scale(vae: dict[str, Any]) -> int:
    """Pixels along the side of one place of the latent."""
    return 2 ** (len(vae.get("dim_mult") or vae.get("block_out_channels") or [0]) - 1)


def latent_size(
    vae: dict[str, Any], denoiser: dict[str, Any], config: RunConfig
) -> tuple[int, int, int] | None:
    """(frames, height, width) of a sample's latent; None where neither config nor model says."""
    scale = latent_scale(vae)
    chosen, side = config.generator, denoiser.get("sample_size")
    sides = side if isinstance(side, list) else [side, side]
    height = chosen.height // scale if chosen.height else denoiser.get("sample_height") or sides[0]
    width = chosen.width // scale if chosen.width else denoiser.get("sample_width") or sides[1]
    if not (height and width):
        return None
    if not (chosen.frames or denoiser.get("sample_frames")):
        return 1, height, width
    return ((chosen.frames or denoiser["sample_frames"]) - 1) // 4 + 1, height, width


# ---- the processes and their device ----


def sharding() -> Sharding | None:
    """How training will be sharded when launch.sh is given the same environment; None where it is not."""
    file = os.environ.get("MPO_ACCELERATE")
    if not file:
        return None
    processes = int(os.environ.get("MPO_PROCESSES") or len(_gpus()) or 1)
    processes *= int(os.environ.get("MPO_NODES") or 1)
    kind = yaml.safe_load(Path(file).read_text(encoding="utf-8")).get("distributed_type")
    if processes == 1 or kind not in ("FSDP", "DEEPSPEED"):
        return None
    return Sharding("FSDP2" if kind == "FSDP" else "ZeRO-2", processes, weights=kind == "FSDP")


def device_memory(config: RunConfig) -> tuple[str, float] | None:
    """(name, bytes) of what one process has: the smallest GPU, or its share of the host's memory on a CPU.

    None where a GPU is asked for and none is seen.
    """
    gpus = [] if config.generator.device == "cpu" else _gpus()
    if gpus:
        return min(gpus, key=lambda gpu: gpu[1])
    if config.generator.device == "cuda":
        return None
    processes = int(os.environ.get("MPO_PROCESSES", "1") or 1)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / processes
    return "this machine's memory" + (f" for each of {processes} processes" if processes > 1 else ""), host


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
    lines, needs, shards = [], [], sharding()
    if generator and generator.parameters:
        need = training(config, generator, shards=shards)
        needs = [("sample", generator.bytes(config.generator.dtype)), ("train", need.total)]
        lines.append(f"{size_of(needs[0][1])} of weights to sample ({config.generator.path})")
        lines.append(
            f"about {size_of(need.total)} a process to train: {_parts(config, generator, need, shards)}"
        )
    if judge and judge.parameters:
        needs.append(("score", judge.bytes(config.reward.dtype)))
        lines.append(f"{size_of(needs[-1][1])} of weights to score ({config.reward.judge})")
    for setting, size in (("generator.path", generator), ("reward.judge", judge)):
        if size is None or not size.parameters:
            lines.append(f"unknown for {setting}: not downloaded yet")
    device = device_memory(config)
    if device is None:
        return [*lines, "generator.device = cuda, but no GPU is seen here"]
    name, there = device
    lines.append(f"{size_of(there)} in {name}")
    for phase, wanted in needs:
        if wanted > there:
            lines.append(
                f"WARNING: will not fit to {phase}: {_advice(config, generator, phase, there, shards)}"
            )
    return lines


def _parts(config: RunConfig, generator: ModelSize, need: Training, shards: Sharding | None) -> str:
    train, count = config.train, trained_parameters(config, generator)
    frozen = "frozen weights" if train.mode == "lora" else "the reference"
    parts = [f"{size_of(need.frozen)} of {frozen}"] if need.frozen else []
    parts.append(f"{size_of(need.trained)} of {count:,} trained parameters with gradients, {train.optimizer}")
    rows = 2 * train.micro_batch_size
    known = need.activations is not None
    told = f"about {size_of(need.activations)} of" if known else "unknown"
    checkpointed = ", checkpointed" if train.gradient_checkpointing else ""
    parts.append(f"{told} activations of {rows} rows{checkpointed}")
    if shards:
        parts.append(f"sharded by {shards.name} over {shards.processes} processes")
    return ", ".join(parts)


def _advice(
    config: RunConfig, generator: ModelSize | None, phase: str, there: float, shards: Sharding | None
) -> str:
    """What to change, from what costs least to what costs most."""
    if phase == "sample":
        return (
            "set generator.dtype=bfloat16" if config.generator.dtype == "float32" else "take a smaller model"
        )
    if phase == "score":
        return "set reward.dtype=bfloat16" if config.reward.dtype == "float32" else "take a smaller judge"
    train = config.train
    one = training(config, generator, rows=2, shards=shards)
    if one.total <= there and one.activations:
        rows = (there - one.frozen - one.trained) / (one.activations / 2)
        return f"set train.micro_batch_size={2 ** int(math.log2(rows / 2))}"
    changes = [] if train.gradient_checkpointing else ["train.gradient_checkpointing=true"]
    changes += ["train.precision=bf16"] if train.precision == "no" else []
    changes += ["train.optimizer=adamw_8bit"] if MOMENTS[train.optimizer] > 2 else []
    changes += ["train.mode=lora"] if train.mode == "full" else []
    changes += ["train.micro_batch_size=1"] if train.micro_batch_size > 1 else []
    if not changes:
        return "take a smaller model or size, or shard it over more GPUs"
    spread = "" if shards else ", or shard it over GPUs with MPO_ACCELERATE=configs/accelerate/fsdp2.yaml"
    return f"set {', '.join(changes)}{spread}"


def size_of(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
