"""Pixels, prompts, ids, types and positions, as the release prepares them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from golden_cogvlm2 import clip, judge, picture, recorded

from rewards.cogvlm2.configuration import CogVLM2Config, CogVLM2VideoConfig, CogVLM2VisionConfig
from rewards.cogvlm2.processing import CogVLM2Processor, frame_pixels
from rewards.cogvlm2.tokens import prompt

SHARED = Path(__file__).parents[3] / "shared" / "golden" / "cogvlm2"


def test_image_pixels_match_the_reference():
    pixels = judge("image").processor.pixels(picture())
    torch.testing.assert_close(pixels[0], recorded("image")["image_chw"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["", "tall_"])
def test_frame_pixels_match_the_reference(name):
    frames = recorded("video")[f"{name}raw_cthw_uint8"].permute(1, 2, 3, 0)
    expected = recorded("video")[f"{name}images_tchw"]
    torch.testing.assert_close(frame_pixels(frames, 32), expected, atol=1e-6, rtol=0)


def test_frame_pixels_of_odd_sizes():
    # 3 x 10 to height 4: width floor(10 / 3 * 4) = 13, of which columns round(4.5) = 4 to 7 remain
    frames = torch.zeros(1, 3, 10, 3, dtype=torch.uint8)
    frames[:, :, 5:] = 255  # column c of 13 reads source (c + 0.5) * 10 / 13 - 0.5: 6 reads 4.5, halfway
    black, white = (-0.48145466 / 0.26862954, (1 - 0.48145466) / 0.26862954)
    row = frame_pixels(frames, 4)[0, 0, 0]
    expected = torch.tensor([black, black, (black + white) / 2, white])
    torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)


def test_prompts():
    assert prompt("Is it day?", "base") == "Is it day?"
    assert prompt("Is it day?", "vqa") == "Question: Is it day? Short answer:"
    assert prompt("Is it day?\n", "chat") == "Question: Is it day?\n Answer:"
    turns = [("Is it day?", "yes"), ("And now?", "no")]
    expected = "Question: Is it day? Answer: yes\nQuestion: And now? Answer: no\nQuestion: Why? Answer:"
    assert prompt("Why?", "chat", turns) == expected
    assert prompt("Why?", "base", turns) == "Why?"


def test_prefixes_of_the_released_sizes():

    def tokenizer(number, add_special_tokens):  # Llama 3 has a token for each of these numbers
        return SimpleNamespace(input_ids=[int(number)])

    video = CogVLM2Processor(tokenizer, CogVLM2VideoConfig())
    prefix = video.prefix(24)
    assert video.template == "chat" and len(prefix) == 1 + 24 * (66 + 1)
    assert prefix.input_ids[:3].tolist() == [128000, 128002, 128002]
    assert prefix.input_ids[67::67].tolist() == list(range(24))
    # begin, patches, end and number of a frame take 4 positions
    assert prefix.position_ids[67::67].tolist() == [4 * frame + 4 for frame in range(24)]
    assert prefix.next_position == 97
    for template in ("vqa", "base"):
        prefix = CogVLM2Processor(tokenizer, CogVLM2VideoConfig(), template).prefix(24)
        assert len(prefix) == 1585 and prefix.next_position == 4
    image = CogVLM2Processor(tokenizer, CogVLM2Config())
    assert image.template == "vqa" and len(image.prefix(1)) == 2307 and image.prefix(1).next_position == 4
    assert image.prefix(0).input_ids.tolist() == [128000]


def test_a_conversation_is_prefix_and_text():
    inputs = judge("video").processor("Is it day?", clip(2))
    tokens = judge("video").processor.tokenizer.decode(inputs["input_ids"][0].tolist())
    frame = "<|reserved_special_token_0|>" * CogVLM2VisionConfig(image_size=32, patch_size=2).tokens
    assert tokens == f"<|begin_of_text|>{frame}0{frame}1Question: Is it day? Answer:"
    assert inputs["position_ids"][0].diff().max() == 1
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert "pixel_values" not in judge("video").processor("Is it day?")


def test_unknown_template_is_refused():
    with pytest.raises(ValueError, match="template: 'qa' is unknown; allowed: base, vqa, chat"):
        CogVLM2Processor(judge("image").processor.tokenizer, judge("image").model.config, "qa")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded conversations lie in ../shared")
@pytest.mark.parametrize("kind", ["image", "video"])
def test_conversations_match_the_reference(kind):
    cases = json.loads((SHARED / kind / "conversation.json").read_text())["cases"]
    assert len(cases) == 12
    media = {"6": clip(6), "4": clip(24)} if kind == "video" else {}
    for case in cases:
        processor = CogVLM2Processor(
            judge(kind).processor.tokenizer, judge(kind).model.config, case["template"]
        )
        shown = media.get(case["name"][-1], picture() if kind == "image" else None)
        if case["name"].endswith(("_noimage", "_novideo")):
            shown = None
        inputs = processor(case["query"], shown, case["history"])
        for name in ("input_ids", "token_type_ids", "attention_mask", "position_ids"):
            assert inputs[name][0].tolist() == case[name], (case["name"], name)
