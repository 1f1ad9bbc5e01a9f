import json
import sys

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import LlavaForConditionalGeneration

from mpo import cli
from mpo.config import GenerateConfig, GeneratorConfig, RunConfig, TrainConfig
from mpo.out_of_memory import encoding, sampling, scoring, told_where, training


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
    assert scoring(config())[1] == ["the size of what is judged", "reward.dtype=bfloat16"]
    options = {"vae_tiling": True}
    small = RunConfig(generator=GeneratorConfig(path="x", dtype="bfloat16", options=options))
    assert encoding(small)[1] == ["generator.height and width"]
    assert encoding(config())[1] == [
        "generator.frames or generator.height and width",
        "generator.dtype=bfloat16",
        "generator.options.vae_tiling=true",
    ]


def test_the_models_own_size_is_told_where_the_config_sets_none(tiny_pipeline):
    def told(family, path):
        generator = GeneratorConfig(family=family, path=str(path))
        doing, lower = sampling(RunConfig(generator=generator, generate=GenerateConfig(batch_size=1)))
        return doing.partition("batch_size=1 ")[2], lower[0]

    smaller = "generator.height and width"
    assert told("stable_diffusion", tiny_pipeline("stable_diffusion")) == (
        "of 16 x 16 pixels in float32",
        smaller,
    )
    clips = "quickstart/video/weights/generator"
    assert told("cogvideox", clips) == (
        "of 32 x 32 pixels, 9 frames in float32",
        f"generator.frames or {smaller}",
    )
    assert told("wan", "nobody/nothing")[0] == "of the model's own size in float32"


@pytest.fixture
def given_pairs(tiny_run, tmp_path):
    """A tiny run whose pairs are given: one, of two pictures."""
    folder = tmp_path / "given"
    folder.mkdir()
    for shade, name in enumerate(("w.png", "l.png")):
        Image.fromarray(np.full((16, 16, 3), shade, dtype=np.uint8)).save(folder / name)
    (folder / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "winner": "w.png", "loser": "l.png"}))
    config = tiny_run(folder)
    settings = yaml.safe_load(config.read_text())
    del settings["prompts"]["train"]
    config.write_text(yaml.safe_dump(settings | {"pairs": {"from": str(folder)}}))
    return config


def test_each_stage_that_holds_a_model_ends_in_one_line_and_goes_on_when_there_is_memory(
    tiny_run, given_pairs, tmp_path, monkeypatch, capsys
):
    def end(config, stage, *full):
        """Run up to `stage`, with no memory left for the method `full` of a model; exit code, own lines."""
        with monkeypatch.context() as patch:
            if full:
                patch.setattr(*full, refuse)
            patch.setattr(sys, "argv", ["mpo", "run", str(config), "--until", stage])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        err = capsys.readouterr().err
        return ended.value.code or 0, [line for line in err.splitlines() if line.startswith("mpo: ")]

    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    config = tiny_run(tmp_path)
    for stage, doing, *full in (
        ("generate", "generate, batches of generate.batch_size=4 ", UNet2DConditionModel, "forward"),
        ("score", "score, a single sample with ", LlavaForConditionalGeneration, "forward"),
        ("train", "train, train.micro_batch_size=2 pairs ", UNet2DConditionModel, "forward"),
        ("generate", "generate, encoding the pairs of pairs.from ", AutoencoderKL, "encode"),
    ):
        run = given_pairs if "encoding" in doing else config
        code, (line,) = end(run, stage, *full)
        assert code == 2 and line.startswith(f"mpo: out of memory: {doing}"), line
        reason = "not enough memory for a single picture" if stage == "score" else "CUDA out of memory."
        assert "; lower " in line and line.endswith(f"{reason})"), line
        if stage != "train":
            assert end(run, stage) == (0, [])
