import golden_cogvlm2
import numpy as np
import pytest
import torch
from tiny_vlms import FAMILIES
from torch.nn.functional import cross_entropy

from rewards import load_judge, load_media
from rewards.judges.cogvlm2 import CogVLM2Judge
from rewards.judges.yes_no import Spellings
from rewards.packed_batch import (
    IGNORED,
    PREFIX,
    Sharer,
    answer_tokens,
    block_mask,
    check_packed,
    pack_answers,
    share,
    stack,
)

QUESTIONS = ["Is it clear?", "Is the image very very clear?", "no question"]
ANSWERS = [1, 0, 1]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def plain_loss(judge, media, question, token):
    """Log loss of one answer, the whole prompt in a sequence of its own, as the processor writes it."""
    inputs = judge._inputs(media, judge.prompt(question, len(media.pictures())))
    logits = judge.model(**inputs, use_cache=False).logits[0, -1]
    return cross_entropy(logits[None], torch.tensor([token]))


def batch_of(judge, media, questions=QUESTIONS, answers=ANSWERS):
    tokens = answer_tokens(judge)
    items = [pack_answers(share(judge, item, questions), [tokens[a] for a in answers]) for item in media]
    return stack(items, judge.processor.tokenizer.pad_token_id, judge.model.dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_separate_sequences(family, tiny_vlm, pictures):
    judge = load_judge(tiny_vlm(family), device="cpu")
    judge.model.requires_grad_(True)
    media = [load_media(picture) for picture in (pictures if family != "idefics3" else pictures[:2])]
    batch = batch_of(judge, media)
    labels = batch.pop("labels")
    logits = judge.model(**batch, use_cache=False).logits
    packed = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    tokens = answer_tokens(judge)
    alone = [
        plain_loss(judge, item, question, tokens[answer])
        for item in media
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    assert packed.item() == pytest.approx(torch.stack(alone).mean().item(), abs=1e-4)
    ours, theirs = gradients(judge.model, packed), gradients(judge.model, torch.stack(alone).mean())
    assert ours.keys() == theirs.keys()
    tower = [name for name in ours if "vision" in name or "visual" in name]
    assert tower and max(ours[name].abs().max() for name in tower) > 1e-4  # the picture's gradients as well
    for name, gradient in theirs.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert ((ours[name] - gradient).abs().max() / scale).item() < 1e-3, name


def test_a_clip_is_shared_too(tiny_vlm, pictures):
    judge = load_judge(tiny_vlm("qwen2_vl"), device="cpu")
    clip = load_media(np.stack([np.asarray(picture) for picture in pictures[:3]]))
    batch = batch_of(judge, [clip])
    labels = batch.pop("labels")
    logits = judge.model(**batch, use_cache=False).logits
    packed = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    tokens = answer_tokens(judge)
    alone = [plain_loss(judge, clip, q, tokens[a]).item() for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    assert packed.item() == pytest.approx(np.mean(alone), abs=1e-4)


def test_the_picture_is_encoded_once_a_step(tiny_vlm, pictures):
    judge = load_judge(tiny_vlm("llava"), device="cpu")
    seen = []
    judge.model.model.vision_tower.register_forward_hook(lambda module, given, out: seen.append(len(out[0])))
    batch = batch_of(judge, [load_media(picture) for picture in pictures[:2]])
    batch.pop("labels")
    judge.model(**batch, use_cache=False)
    assert seen == [2]  # one pass over two pictures, for six questions


def test_only_answers_are_learned(tiny_vlm, pictures):
    judge = load_judge(tiny_vlm("llava"), device="cpu")
    no, yes = answer_tokens(judge)
    assert judge.processor.tokenizer.convert_ids_to_tokens([no, yes]) == ["no", "yes"]
    labels = batch_of(judge, [load_media(pictures[0])])["labels"]
    assert labels[labels != IGNORED].tolist() == [yes, no, yes]


def test_mask_by_hand():
    block = torch.tensor([[PREFIX, 0, 0, 1]])
    seen = block_mask(block, torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]


def test_a_picture_that_sees_itself_whole_by_hand():
    block = torch.tensor([[PREFIX, PREFIX, PREFIX, PREFIX, 0]])
    pictures = torch.tensor([[-1, 0, 0, 1, -1]])  # text, a picture of two tokens, one of one
    seen = block_mask(block, torch.float32, pictures)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_a_model_that_answers_differently_packed_is_refused(tiny_vlm, pictures, monkeypatch):
    judge = load_judge(tiny_vlm("gemma3"), device="cpu")
    check_packed(judge, load_media(pictures[0]), QUESTIONS)
    monkeypatch.setattr("rewards.packed_batch.whole_pictures", lambda config, prefix: None)
    with pytest.raises(ValueError, match="answers differently when questions share a sequence"):
        check_packed(judge, load_media(pictures[0]), QUESTIONS)


def test_training_prompts_longer_than_a_sliding_window_are_refused(tiny_vlm, pictures):
    judge = load_judge(tiny_vlm("gemma3"), device="cpu")
    judge.model.config.text_config.sliding_window = 60
    with pytest.raises(ValueError, match="is longer than its attention window of 60"):
        share(judge, load_media(pictures[0]), QUESTIONS)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_cogvlm2_gradients_are_those_of_separate_sequences(kind):
    judge = CogVLM2Judge.load(golden_cogvlm2.FOLDER / kind, dtype="float32", device="cpu")
    judge.model.requires_grad_(True)
    media = golden_cogvlm2.picture() if kind == "image" else golden_cogvlm2.clip(3)
    tokens = answer_tokens(judge)
    items = [pack_answers(share(judge, media, QUESTIONS), [tokens[answer] for answer in ANSWERS])] * 2
    batch = stack(items, judge.processor.tokenizer.pad_token_id or 0, judge.model.dtype)
    labels = batch.pop("labels")
    logits = judge.model(**batch, use_cache=False).logits
    packed = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    losses = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        logits = judge.model(**judge.processor(question, media), use_cache=False).logits[0, -1]
        losses.append(cross_entropy(logits[None], torch.tensor([tokens[answer]])))
    plain = torch.stack(losses).mean()
    assert packed.item() == pytest.approx(plain.item(), abs=1e-4)
    ours, theirs = gradients(judge.model, packed), gradients(judge.model, plain)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert ((ours[name] - gradient).abs().max() / scale).item() < 1e-3, name


def test_clips_of_different_length_cannot_share_a_batch(tiny_vlm, pictures):
    judge = load_judge(tiny_vlm("idefics3"), device="cpu")
    frames = np.stack([np.asarray(picture) for picture in pictures[:3]])
    with pytest.raises(ValueError, match="micro_batch_size=1"):
        batch_of(judge, [load_media(frames), load_media(frames[:1])])


def test_answers_that_are_no_single_token_are_refused(tiny_vlm):
    judge = load_judge(tiny_vlm("llava"), device="cpu")
    judge.words = Spellings(yes=(5,), no=(6,))  # as if the vocabulary knew other spellings only
    with pytest.raises(ValueError, match="'no' is not a single token after its prompt"):
        answer_tokens(judge)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_medium_that_was_kept_is_not_read_again(family, tiny_vlm, pictures):
    judge = load_judge(tiny_vlm(family), device="cpu")
    media, read = load_media(pictures[0]), []

    def load(item):
        read.append(item)
        return media

    keeping, forgetting = Sharer(judge, limit=1e9), Sharer(judge, limit=0)
    for asked in (QUESTIONS, QUESTIONS[::-1]):
        expected = share(judge, media, asked)
        for sharer in (keeping, forgetting):
            found = sharer("item", lambda name=sharer: load(name), asked)
            assert found.questions == expected.questions and found.next_position == expected.next_position
            assert torch.equal(found.positions, expected.positions)
            assert found.prefix.keys() == expected.prefix.keys()
            assert all(torch.equal(found.prefix[name], value) for name, value in expected.prefix.items())
    assert read.count(keeping) == 1 and read.count(forgetting) == 2
