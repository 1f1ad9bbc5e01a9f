from dataclasses import replace

import pytest

from generators.build import FAMILIES, family_class
from mpo import memory
from mpo.config import GeneratorConfig, LoraConfig, RunConfig, TrainConfig
from mpo.plan import ModelSize

SD15 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
}
SD35 = {"num_attention_heads": 24, "attention_head_dim": 64, "num_layers": 24, "patch_size": 2}
WAN = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "patch_size": [1, 2, 2]}
# GB in half precision that autograd kept of a row, by its hooks, with all weights trained
MEASURED = {
    "sd15": (SD15, (1, 64, 64), 0.983),
    "sd35": (SD35, (1, 64, 64), 3.53),
    "wan": (WAN, (21, 60, 104), 145),
}

SIZE = ModelSize({"unet": 1000, "vae": 10, "text_encoder": 20}, 50, None, 0, (100.0, 30.0))


def config(**train):
    return RunConfig(generator=GeneratorConfig(path="x", device="cpu"), train=TrainConfig(**train))


@pytest.mark.parametrize("name", MEASURED)
def test_activations_are_near_those_measured(name):
    denoiser, latent, gigabytes = MEASURED[name]
    plain, checkpointed = memory.activations(denoiser, latent)
    assert 2e-9 * plain == pytest.approx(gigabytes, rel=0.33)
    assert 0.01 * plain < checkpointed < 0.3 * plain


def test_activations_grow_with_the_latent():
    one, four = (memory.activations(SD15, (1, side, side))[0] for side in (64, 128))
    assert four == pytest.approx(4 * one)
    assert memory.activations({"width": 3}, (1, 64, 64)) is None


def test_what_lora_and_a_full_fine_tune_hold():
    lora = memory.training(config(lora=LoraConfig(rank=4), micro_batch_size=2), SIZE)
    # 1000 float32 weights; 4 x 50 parameters of 4 + 4 + 8 bytes; 100 numbers of 4 bytes a row, 2 x 2 rows
    assert (lora.frozen, lora.trained, lora.activations) == (4000, 3200, 1600)
    full = memory.training(config(mode="full", optimizer="adamw_8bit", precision="bf16"), SIZE, rows=1)
    assert (full.frozen, full.trained, full.activations) == (4000, 10_000, 200)
    assert memory.training(config(mode="full", loss="mapo"), SIZE).frozen == 0
    assert memory.training(config(gradient_checkpointing=True), SIZE, rows=1).activations == 120


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
    assert whole == 20 and "about 111 GB a process" in line and "sharded" not in line
    assert need("ddp", MPO_PROCESSES="8") == (whole, line) == need("fsdp2", MPO_PROCESSES="1")
    sharded, line = need("fsdp2", MPO_NODES="2")  # a process for each of 4 GPUs
    assert sharded == 20 / 8 and line.endswith("sharded by FSDP2 over 8 processes")
    partly, line = need("zero2", MPO_PROCESSES="8")
    assert partly == 4 + 4 + 12 / 8 and "about 52.9 GB" in line and "ZeRO-2 over 8 processes" in line


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
    (line,) = told(7_500, micro_batch_size=1)
    assert "set train.gradient_checkpointing=true, train.precision=bf16" in line
    assert any("will not fit to sample: set generator.dtype=bfloat16" in line for line in told(4_000))


def test_an_unseen_gpu_is_said(monkeypatch):
    monkeypatch.setattr(memory, "_gpus", lambda: [])
    asked = config()
    asked = replace(asked, generator=replace(asked.generator, device="cuda"))
    assert memory.memory_lines(asked, SIZE, None)[-1] == "generator.device = cuda, but no GPU is seen here"
    name, there = memory.device_memory(config())
    assert name == "this machine's memory" and there > 1e9
    monkeypatch.setattr(memory, "_gpus", lambda: [("big", 80e9), ("small", 24e9)])
    assert memory.device_memory(asked) == ("small", 24e9)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_counted_where_the_family_puts_them(family):
    asked = RunConfig(generator=GeneratorConfig(family=family, path="x"))
    assert sorted(memory.lora_targets(asked)) == sorted(family_class(family).lora_targets)
