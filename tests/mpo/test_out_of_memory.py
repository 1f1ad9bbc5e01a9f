import pytest
import torch

from mpo.config import GenerateConfig, GeneratorConfig, RunConfig, TrainConfig
from mpo.out_of_memory import sampling, scoring, told_where, training


def config(**changes):
    return RunConfig(generator=GeneratorConfig(path="x", height=512, width=768, frames=9), **changes)


def test_what_no_memory_is_left_for_is_one_line_with_what_to_lower():
    with pytest.raises(MemoryError) as caught, told_where(*training(config())):
        torch.empty(2**60)  # more than any machine's
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("out of memory: train, train.micro_batch_size=8 pairs")
    assert "512 x 768 pixels, 9 frames" in message
    assert "lower train.micro_batch_size, or set train.gradient_checkpointing=true" in message
    assert "can't allocate memory" in message


def test_other_errors_go_through():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), told_where("train", []):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_only_what_is_left_to_lower_is_named():
    tight = TrainConfig(micro_batch_size=1, gradient_checkpointing=True, precision="bf16", mode="full")
    assert training(config(train=tight))[1] == [
        "generator.frames or generator.height and width",
        "train.optimizer=paged_adamw_8bit",
        "train.mode=lora",
    ]
    doing, lower = sampling(config(generate=GenerateConfig(batch_size=6)))
    assert "generate.batch_size=6" in doing and lower[:2] == [
        "generate.batch_size",
        "generator.dtype=bfloat16",
    ]
    assert sampling(config(generate=GenerateConfig(batch_size=1)))[1][0].startswith("generator.frames")
    assert scoring(config())[1][0] == "reward.batch_size"
