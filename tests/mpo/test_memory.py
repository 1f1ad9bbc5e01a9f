from dataclasses import replace

import pytest

from mpo import memory
from mpo.config import ConfigError, GeneratorConfig, LoraConfig, RunConfig, TrainConfig
from mpo.model_size import ModelSize

SIZE = ModelSize({"unet": 1000, "vae": 10, "text_encoder": 20}, 50, None, 0, (100.0, 30.0))


def config(**train):
    return RunConfig(generator=GeneratorConfig(path="x", device="cpu"), train=TrainConfig(**train))


def test_what_lora_and_a_full_fine_tune_hold():
    lora = memory.training(config(lora=LoraConfig(rank=4), micro_batch_size=2), SIZE)
    # 1000 float32 weights; 4 x 50 parameters of 4 + 4 + 8 bytes; 100 numbers of 4 bytes a row, 2 x 2 rows
    assert (lora.frozen, lora.trained, lora.activations) == (4000, 3200, 1600)
    eight = config(mode="full", optimizer="adamw_8bit", precision="bf16", micro_batch_size=1)
    full = memory.training(eight, SIZE)
    assert (full.frozen, full.trained, full.activations) == (4000, 10_000, 400)
    assert memory.training(config(mode="full", loss="mapo"), SIZE).frozen == 0
    checkpointed = config(gradient_checkpointing=True, micro_batch_size=1)
    assert memory.training(checkpointed, SIZE).activations == 240


def test_what_sharding_leaves_to_a_process(monkeypatch):
    """CogVideoX-5B, 5.57 G parameters, trained whole with AdamW: 4 bytes each of weight, reference, gradient,
    and 8 of moments."""
    size = ModelSize({"transformer": 5_570_283_072}, 0, None, 0)
    monkeypatch.setattr(memory, "_gpus", lambda: [("big", 80e9)] * 4)

    def need(settings, **environment):
        for name in ("MPO_ACCELERATE", "MPO_PROCESSES", "MPO_NODES"):
            monkeypatch.delenv(name, raising=False)
        environment |= {"MPO_ACCELERATE": f"configs/accelerate/{settings}.yaml"} if settings else {}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        asked = config(mode="full", gradient_checkpointing=True, precision="bf16")
        train = next(line for line in memory.memory_lines(asked, size, None) if "to train" in line)
        return memory.training(asked, size, shards=memory.sharding()).total / 5_570_283_072, train

    whole, line = need(None)
    assert whole == 20 and "at least 111 GB a process" in line and "sharded" not in line
    assert need("ddp", MPO_PROCESSES="8") == (whole, line) == need("fsdp2", MPO_PROCESSES="1")
    sharded, line = need("fsdp2", MPO_NODES="2")  # a process for each of 4 GPUs
    assert sharded == 20 / 8 and line.endswith("sharded by FSDP2 over 8 processes")
    partly, line = need("zero2", MPO_PROCESSES="8")
    assert partly == 4 + 4 + 12 / 8 and "at least 52.9 GB" in line and "ZeRO-2 over 8 processes" in line


def test_a_need_that_does_not_fit_is_a_warning_with_what_to_change(monkeypatch):
    def told(there, **train):
        monkeypatch.setattr(memory, "device_memory", lambda config: ("a small GPU", there))
        lines = memory.memory_lines(config(lora=LoraConfig(rank=4), **train), SIZE, None)
        return [line for line in lines if line.startswith("WARNING")]

    assert told(20_000, micro_batch_size=8) == []
    # 7200 bytes of weights; 800 of activations a pair: 4 pairs fit into 10,500, 3 into 10,000
    assert told(10_500, micro_batch_size=8) == [
        "WARNING: will not fit to train: set train.micro_batch_size=4"
    ]
    assert told(10_000, micro_batch_size=8) == [
        "WARNING: will not fit to train: set train.micro_batch_size=2"
    ]
    # 100 numbers a row are 30 with checkpointing
    assert told(7_500, micro_batch_size=1) == [
        "WARNING: will not fit to train: set train.gradient_checkpointing=true"
    ]


def advised(monkeypatch, there, gpus, asked, size=SIZE):
    """The end of the warning about training with so many bytes, on so many GPUs."""
    monkeypatch.setattr(memory, "_gpus", lambda: [("a GPU", there)] * gpus)
    monkeypatch.setattr(memory.os, "sysconf", lambda name: there if name == "SC_PHYS_PAGES" else 1)
    device = "auto" if gpus else "cpu"
    asked = replace(asked, generator=replace(asked.generator, device=device))
    lines = memory.memory_lines(asked, size, None)
    return next(line for line in lines if "not fit to train" in line).partition("to train: ")[2]


def test_only_what_applies_and_helps_is_advised_and_where_it_is_not_enough_that(monkeypatch):
    lora, full = config(lora=LoraConfig(rank=4), micro_batch_size=1), config(mode="full", micro_batch_size=1)
    heavy = replace(SIZE, activations=None)
    # a float32 base of 4000 bytes, 3200 of the adapter; the base halved leaves 5200, in all
    assert advised(monkeypatch, 6000, 0, lora, heavy) == "set generator.dtype=bfloat16"
    # adafactor keeps no moments: 4 x 50 parameters of 8 bytes, where adamw's 8 more are
    both = "generator.dtype=bfloat16, train.optimizer=adafactor"
    assert advised(monkeypatch, 4000, 0, lora, heavy) == f"set {both}"
    smaller = "take a smaller model or size"
    assert advised(monkeypatch, 3000, 0, lora, heavy) == f"even with {both} it needs 3.6 kB; {smaller}"
    # 4 + 4 + 8 bytes of weight, gradient and moments and 4 of the reference; 2 of moments fit into 14.5
    spread = "or shard it over GPUs with MPO_ACCELERATE=configs/accelerate/fsdp2.yaml"
    assert advised(monkeypatch, 14_500, 1, full, heavy) == f"set train.optimizer=adamw_8bit, {spread}"
    assert advised(monkeypatch, 14_500, 0, full, heavy) == "set train.optimizer=adafactor"
    # LoRA alone is enough for what the optimisers are not: the reference of 4000, 16 x 50 x 16 of the adapter
    adapter = replace(heavy, adapted=1)
    assert advised(monkeypatch, 5_000, 0, full, adapter) == "set train.mode=lora"
    least = "train.optimizer=adafactor, train.mode=lora, generator.dtype=bfloat16"
    assert advised(monkeypatch, 100, 0, full, adapter) == f"even with {least} it needs 2.13 kB; {smaller}"


def test_a_micro_batch_divides_the_batch(monkeypatch):
    """7200 bytes of weights and 800 a pair: 4 of 6 pairs would fit, but 6 goes in threes."""
    asked = config(lora=LoraConfig(rank=4), micro_batch_size=6, batch_size=6)
    assert advised(monkeypatch, 10_500, 0, asked) == "set train.micro_batch_size=3"


def test_weights_that_do_not_fit_are_halved_where_that_is_enough(monkeypatch):
    def told(there, **generator):
        monkeypatch.setattr(memory, "device_memory", lambda config: ("this machine's memory", there))
        asked = replace(config(), generator=GeneratorConfig(path="x", device="cpu", **generator))
        return [line.partition("WARNING: ")[2] for line in memory.memory_lines(asked, SIZE, SIZE)]

    # 1030 weights
    assert "will not fit to sample: set generator.dtype=bfloat16" in told(4_000)
    assert "will not fit to score: set reward.dtype=bfloat16" in told(4_000)
    even = "will not fit to sample: even with generator.dtype=bfloat16 it needs 2.06 kB; "
    assert even + "take a smaller model or size" in told(2_000)
    assert "will not fit to sample: take a smaller model or size" in told(2_000, dtype="bfloat16")


def test_what_is_not_known_is_no_total():
    unknown = replace(SIZE, activations=None)
    lines = memory.memory_lines(config(), unknown, None)
    assert any(line.startswith("at least ") and "unknown activations of 16 rows" in line for line in lines)
    assert any(line.startswith("about ") for line in memory.memory_lines(config(), SIZE, None))
    absent = replace(SIZE, parameters={"vae": 10})  # of a download that was cut off
    lines = memory.memory_lines(config(), absent, None)
    assert lines[0].startswith(
        f"unknown for generator.path: {config().generator.path} is not here, or not all "
    )


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("MPO_PROCESSES", "abc", "must be a whole number from 1"),
        ("MPO_PROCESSES", "0", "must be a whole number from 1"),
        ("MPO_NODES", "-1", "must be a whole number from 1"),
        ("MPO_ACCELERATE", "nope.yaml", "no such file; there are those in configs/accelerate/"),
        ("MPO_ACCELERATE", "README.md", "must be YAML with a distributed_type"),
        ("MPO_ACCELERATE", "configs/sd15.yaml", "must be YAML with a distributed_type"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(monkeypatch, name, value, allowed):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        memory.memory_lines(config(), SIZE, None)
    assert str(caught.value) == f"{name}={value}: {allowed}"


def test_an_unseen_gpu_is_said(monkeypatch):
    monkeypatch.setattr(memory, "_gpus", lambda: [])
    asked = config()
    asked = replace(asked, generator=replace(asked.generator, device="cuda"))
    assert memory.memory_lines(asked, SIZE, None)[-1] == "generator.device = cuda, but no GPU is seen here"
    name, there = memory.device_memory(config())
    assert name == "this machine's memory" and there > 1e9
    monkeypatch.setattr(memory, "_gpus", lambda: [("big", 80e9), ("small", 24e9)])
    assert memory.device_memory(asked) == ("small", 24e9)
