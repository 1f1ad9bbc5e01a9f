"""One line where memory runs out: what was being done, at which batch and size, and what to lower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size

from mpo.config import RunConfig
from mpo.model_size import own_sample_size


@contextmanager
def told_where(doing: str, lower: Sequence[str]) -> Iterator[None]:
    """Raise MemoryError, which says it all in one line, where a device or the host has no memory left."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
            raise
        reason = next(iter(str(error).splitlines()), "") or "no memory left"
        advice = f"; lower {', or set '.join(lower)}" if lower else ""
        raise MemoryError(f"out of memory: {doing}{advice} ({reason[:160]})") from error


def sampling(config: RunConfig) -> tuple[str, list[str]]:
    """What is being sampled, and what would need less."""
    generator, batch_size = config.generator, config.generate.batch_size
    doing = f"generate, batches of generate.batch_size={batch_size} {_size(config)} in {generator.dtype}"
    lower = ["generate.batch_size"] if batch_size > 1 else [_less(config)]
    if generator.dtype == "float32":
        lower.append("generator.dtype=bfloat16")
    saving = [name for name in ("vae_tiling", "vae_slicing") if not generator.options.get(name)]
    lower += [f"generator.options.{name}=true" for name in saving]
    return doing, lower


def encoding(config: RunConfig) -> tuple[str, list[str]]:
    """What encoding pairs from elsewhere does, and what to lower."""
    generator = config.generator
    doing = f"generate, encoding the pairs of pairs.from one by one {_size(config)}, the VAE in float32"
    lower = [_less(config)]
    if generator.dtype == "float32":
        lower.append("generator.dtype=bfloat16")
    if not generator.options.get("vae_tiling"):
        lower.append("generator.options.vae_tiling=true")
    return doing, lower


def scoring(config: RunConfig) -> tuple[str, list[str]]:
    """Judges halve their batches until they fit, so a single sample, or the weights, are too much already."""
    reward = config.reward
    doing = f"score, a single sample with {reward.judge} in {reward.dtype}"
    lower = ["the size of what is judged"]
    return doing, lower + (["reward.dtype=bfloat16"] if reward.dtype == "float32" else [])


def training(config: RunConfig) -> tuple[str, list[str]]:
    """What a training step does, and what to lower."""
    train = config.train
    doing = (
        f"train, train.micro_batch_size={train.micro_batch_size} pairs (twice as many rows) {_size(config)}, "
        f"{train.mode}, {train.optimizer}, precision {train.precision}"
    )
    lower = ["train.micro_batch_size"] if train.micro_batch_size > 1 else [_less(config)]
    if not train.gradient_checkpointing:
        lower.append("train.gradient_checkpointing=true")
    if train.precision == "no":
        lower.append("train.precision=bf16")
    if train.mode == "full":
        lower += ["train.optimizer=paged_adamw_8bit"] if train.optimizer != "paged_adamw_8bit" else []
        lower.append("train.mode=lora")
    elif config.generator.dtype == "float32":
        lower.append("generator.dtype=bfloat16")
    return doing, lower


def _size(config: RunConfig) -> str:
    size = own_sample_size(config)
    if size is None:
        return "of the model's own size"
    frames, height, width = size
    return f"of {height} x {width} pixels" + (f", {frames} frames" if frames > 1 else "")


def _less(config: RunConfig) -> str:
    """The setting that makes one sample smaller."""
    frames, *_ = own_sample_size(config) or (config.generator.frames or 1,)
    return ("generator.frames or " if frames > 1 else "") + "generator.height and width"
