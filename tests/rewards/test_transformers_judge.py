"""One pass over a shared picture equals one question at a time, on tiny random models of several families."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vlms import FAMILIES
from transformers import Florence2Config, MllamaConfig, PaliGemmaConfig, Qwen3_5Config

from rewards import load_judge, load_media
from rewards.judges.architecture import check_architecture, check_window
from rewards.judges.base import Answers, Failure
from rewards.judges.transformers_vlm import TransformersJudge

QUESTIONS = ["Is it clear?\n", "no", 'Does it show "a cat, a dog"?', "Is the image very very clear? " * 9]


@pytest.fixture(scope="module")
def judges(tiny_vlm):
    loaded = {}

    def judge(family: str) -> TransformersJudge:
        if family not in loaded:
            loaded[family] = load_judge(tiny_vlm(family), device="cpu")
        return loaded[family]

    return judge


def largest_gap(judge, media, questions, results) -> float:
    """Largest difference in log-probability between one pass and plain prompts."""
    gaps = []
    for item, asked, result in zip(media, questions, results, strict=True):
        assert isinstance(result, Answers), result
        for column, question in enumerate(asked):
            plain = judge.answer_plainly(item, question)
            gaps.append((plain.yes_logit - result.yes_logit[column]).abs().item())
            gaps.append((plain.no_logit - result.no_logit[column]).abs().item())
    return max(gaps)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_equals_one_question_at_a_time(family, judges, pictures, monkeypatch):
    judge = judges(family)
    media = [load_media(picture) for picture in pictures]
    questions = [[f"{question}{row}" for question in QUESTIONS] for row in range(len(media))]
    monkeypatch.setattr(judge.layouts, "fixed", "packed")
    results = judge.answer(media, questions)
    assert largest_gap(judge, media, questions, results) < 1e-4
    monkeypatch.setattr(judge.layouts, "fixed", "batched")
    for found, expected in zip(judge.answer(media, questions), results, strict=True):
        assert (found.yes_logit - expected.yes_logit).abs().max() < 1e-4
        assert (found.no_logit - expected.no_logit).abs().max() < 1e-4
    spread = torch.stack([result.yes_logit - result.no_logit for result in results])
    assert spread.std(dim=0).min() > 0.05 and spread.std(dim=1).min() > 0.05  # pictures and questions matter


@pytest.mark.parametrize("family", FAMILIES)
def test_clips_are_shown_as_their_frames(family, judges, pictures):
    judge = judges(family)
    clip = load_media(np.stack([np.asarray(picture) for picture in pictures[:3]]))
    results = judge.answer([clip], [QUESTIONS])
    assert largest_gap(judge, [clip], [QUESTIONS], results) < 1e-4
    backwards = load_media(clip.frames[::-1].copy())
    (other,) = judge.answer([backwards], [QUESTIONS])
    assert (other.yes_logit - results[0].yes_logit).abs().max() > 1e-3


def test_many_questions_are_split_over_sequences(judges, pictures):
    judge = judges("qwen2_vl")
    questions = [[f"Is the image clear, or is it number {number}?" for number in range(64)]]
    media = [load_media(pictures[0])]
    assert largest_gap(judge, media, questions, judge.answer(media, questions)) < 1e-4


def test_answers_do_not_depend_on_batch_size_or_order(judges, pictures):
    judge = judges("llava")
    media = [load_media(picture) for picture in pictures]
    together = judge.answer(media, [QUESTIONS] * 4)
    alone = [judge.answer([item], [QUESTIONS])[0] for item in media]
    backwards = judge.answer(media[::-1], [QUESTIONS[::-1]] * 4)[::-1]
    for one, two, three in zip(together, alone, backwards, strict=True):
        torch.testing.assert_close(one.yes_logit, two.yes_logit, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.yes_logit, three.yes_logit.flip(0), atol=1e-5, rtol=0)


def test_ragged_questions(judges, pictures):
    judge = judges("llava")
    media = [load_media(picture) for picture in pictures[:2]]
    questions = [QUESTIONS[:1], QUESTIONS]
    assert largest_gap(judge, media, questions, judge.answer(media, questions)) < 1e-4


def test_batch_is_halved_until_it_fits(tiny_vlm, pictures, monkeypatch):
    judge = load_judge(tiny_vlm("llava"), device="cpu", batch_size=8)
    sizes = []
    answer_batch = judge._answer_batch

    def little_memory(items):
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return answer_batch(items)

    monkeypatch.setattr(judge, "_answer_batch", little_memory)
    media = [load_media(picture) for picture in [*pictures[:3]] * 2]
    results = judge.answer(media, [QUESTIONS] * 6)
    assert judge.batch_size == 1 and sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert largest_gap(judge, media, [QUESTIONS] * 6, results) < 1e-4
    monkeypatch.setattr(judge, "_answer_batch", lambda items: little_memory(items * 3))
    with pytest.raises(MemoryError, match="not enough memory for a single picture"):
        judge.answer(media[:1], [QUESTIONS])


def test_template_in_place_of_the_chat_template(tiny_vlm, pictures):
    template = "USER: {image}\nQuestion: {question} Short answer:"
    judge = load_judge(tiny_vlm("llava"), device="cpu", template=template)
    assert judge.prompt("Is it?", 1) == "USER: <image>\nQuestion: Is it? Short answer:"
    media = [load_media(pictures[0])]
    assert largest_gap(judge, media, [QUESTIONS], judge.answer(media, [QUESTIONS])) < 1e-4
    assert judge.fingerprint != load_judge(tiny_vlm("llava"), device="cpu").fingerprint


def test_template_around_the_question_within_the_chat_template(tiny_vlm, pictures):
    judge = load_judge(tiny_vlm("llava"), device="cpu", template="{question} Yes or no?")
    assert judge.prompt("Is it?", 2) == (
        "<|im_start|>user\n<image>\n<image>\nIs it? Yes or no?<|im_end|>\n<|im_start|>assistant\n"
    )
    media = [load_media(pictures[0])]
    assert largest_gap(judge, media, [QUESTIONS], judge.answer(media, [QUESTIONS])) < 1e-4
    with pytest.raises(ValueError, match="has no {question}"):
        load_judge(tiny_vlm("llava"), device="cpu", template="Is it?")


def test_placeholders_in_a_prompt_are_a_failure_of_its_own(judges, pictures):
    judge = judges("llava")
    media = [load_media(picture) for picture in pictures[:2]]
    questions = [["Is it?", 'Does it show "<image>"?'], ["Is it?", 'Does it show "{image} {question}"?']]
    refused, answered = judge.answer(media, questions)
    assert isinstance(refused, Failure) and "holds <image>" in refused.reason
    assert largest_gap(judge, media[1:], questions[1:], [answered]) < 1e-4


def test_question_before_the_picture_is_refused(tiny_vlm, pictures):
    judge = load_judge(tiny_vlm("qwen2_vl"), device="cpu", template="{question} {image} Answer:")
    with pytest.raises(ValueError, match="puts the question first"):
        judge.answer([load_media(pictures[0])], [QUESTIONS])


def test_prompts_longer_than_a_sliding_window_are_refused(tiny_vlm, pictures):
    judge = load_judge(tiny_vlm("gemma3"), device="cpu")
    judge.model.config.text_config.sliding_window = 60
    with pytest.raises(ValueError, match="is longer than its attention window of 60"):
        judge.answer([load_media(pictures[0])], [QUESTIONS])
    judge.model.config.text_config.layer_types = ["full_attention"] * 3
    check_window(judge.model.config, "full attention", 1000)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (PaliGemmaConfig(), "its picture attends to the question"),
        (MllamaConfig(), "cross-attention"),
        (Florence2Config(), "cross-attention"),
        (Qwen3_5Config(), "linear_attention layers"),
    ],
)
def test_architectures_that_cannot_share_a_picture_are_refused(config, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        check_architecture(config, "judge")
    assert "\n" not in str(caught.value)


def test_an_architecture_that_disagrees_is_refused(tiny_vlm, pictures, monkeypatch):
    judge = load_judge(tiny_vlm("qwen2_vl"), device="cpu")
    monkeypatch.setattr(judge, "_next_position", lambda length, rows: torch.full((rows, 1), length + 5))
    with pytest.raises(ValueError, match="answers differently with a shared picture"):
        judge.answer([load_media(pictures[0])], [QUESTIONS])


def test_a_picture_the_processor_refuses_is_a_failure_of_its_own(judges, pictures):
    judge = judges("qwen2_vl")  # Qwen-VL refuses aspect ratios of 200 and more
    media = [load_media(Image.new("RGB", (2010, 10))), load_media(pictures[0])]
    refused, answered = judge.answer(media, [QUESTIONS] * 2)
    assert isinstance(refused, Failure) and "aspect ratio" in refused.reason
    assert isinstance(answered, Answers)


def test_bfloat16_is_close_to_float32(tiny_vlm, pictures, judges):
    half = load_judge(tiny_vlm("llava"), device="cpu", dtype="bfloat16")
    media = [load_media(pictures[0])]
    one, two = half.answer(media, [QUESTIONS])[0], judges("llava").answer(media, [QUESTIONS])[0]
    torch.testing.assert_close(one.p_yes, two.p_yes, atol=0.1, rtol=0)
    assert half.fingerprint != judges("llava").fingerprint


def copy_without(folder, target, *names):
    shutil.copytree(folder, target)
    for name in names:
        (target / name).unlink()
    return target


def test_broken_folders_are_one_clear_line(tiny_vlm, tmp_path):
    source = tiny_vlm("llava")
    no_weights = copy_without(source, tmp_path / "no_weights", "model.safetensors")
    corrupt = copy_without(source, tmp_path / "corrupt")
    (corrupt / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:1000])
    empty = tmp_path / "empty"
    empty.mkdir()
    no_tokenizer = copy_without(source, tmp_path / "no_tokenizer", "tokenizer.json", "tokenizer_config.json")
    expected = {
        no_weights: "model.safetensors",
        corrupt: "damaged weights",
        empty: "no config.json",
        no_tokenizer: "processor cannot be loaded",
        tmp_path / "absent": "absent",
    }
    for folder, words in expected.items():
        with pytest.raises(ValueError, match=words) as caught:
            load_judge(folder, device="cpu")
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"text_config": {"model_type": "llama", "hidden_size": "sixty"}},
        {"text_config": {"model_type": "llama", "num_attention_heads": 7}},  # of 4096
        {"vision_config": "none"},
    ],
)
def test_a_config_that_makes_no_model_is_one_clear_line(change, tiny_vlm, tmp_path):
    folder = copy_without(tiny_vlm("llava"), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match="odd: this model cannot be loaded: ") as caught:
        load_judge(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_keys_that_do_not_match_are_named(tiny_vlm, tmp_path):
    folder = copy_without(tiny_vlm("llava"), tmp_path / "renamed")
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in sorted(weights) if key.endswith("norm.weight"))
    weights["surprise.weight"] = weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        load_judge(folder, device="cpu")
    message = str(caught.value)
    assert "1 missing (first:" in message and "1 unexpected (first: surprise.weight)" in message
    assert "norm.weight" in message and "\n" not in message


def test_fingerprint_follows_every_weight(judges, tiny_vlm, tmp_path):
    folder = copy_without(tiny_vlm("llava"), tmp_path / "changed")
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_judge(folder, device="cpu").fingerprint != judges("llava").fingerprint
    same = load_judge(tiny_vlm("llava"), device="cpu")
    assert same.fingerprint == judges("llava").fingerprint
