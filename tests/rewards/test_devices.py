"""Where a model goes: the devices that can be named, and those that are here."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from rewards import load_judge
from rewards.judges.loading import pick_device


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", r"device 'gpu' is unknown; allowed: auto, cpu, cuda, or cuda:N"),
        ("CUDA", r"device 'CUDA' is unknown; allowed"),
        ("cuda:first", r"device 'cuda:first' is unknown; allowed"),
        (
            "cuda:99",
            r"device 'cuda:99' is not here: torch finds \d+ GPUs; allowed: auto, cpu, cuda, or cuda:N",
        ),
        pytest.param(
            "cuda",
            "device 'cuda' is not here: torch finds 0 GPUs; allowed",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
)
def test_a_device_that_is_none_is_told_before_weights_are_loaded(device, message, tiny_vlm, monkeypatch):
    def load(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", load)
    with pytest.raises(ValueError, match=message) as caught:
        load_judge(tiny_vlm("llava"), device=device)
    assert "\n" not in str(caught.value)


def test_the_first_gpu_is_taken_where_there_is_one(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    for count, auto in ((0, "cpu"), (2, "cuda")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        assert pick_device("auto") == torch.device(auto)
    assert pick_device("cuda") == torch.device("cuda") and pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device 'cuda:2' is not here: torch finds 2 GPUs"):
        pick_device("cuda:2")
