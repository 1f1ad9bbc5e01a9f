"""Training sequences of a judge: a picture once, then all its questions with their answers, side by side.

Every question sees the picture and itself, with positions that restart after the picture, so that
gradients are those of asking one question at a time, while the picture is encoded once. `labels` hold the
answer tokens alone.

Shapes: B items, P tokens of the prefix with the picture, L tokens of a packed sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rewards.cogvlm2.tokens import prompt
from rewards.judges.architecture import check_window, whole_pictures
from rewards.judges.cogvlm2 import CogVLM2Judge
from rewards.judges.transformers_vlm import TransformersJudge
from rewards.judges.yes_no import EXACT, read_yes_no
from rewards.media import Media

PREFIX, PADDING = -1, -2  # blocks that are no question
IGNORED = -100  # label of a token that is not learned


@dataclass(frozen=True)
class Shared:
    """What the questions about one medium share.

    prefix: model inputs up to the first question, a batch of one. positions: [..., 1, P], several rows
    for multimodal rotary positions. next_position: that of a question's first token. questions: token ids
    of each. pictures: as `whole_pictures` has it.
    """

    prefix: dict[str, Tensor]
    positions: Tensor
    next_position: int
    questions: list[list[int]]
    pictures: Tensor | None = None


def share(judge: TransformersJudge | CogVLM2Judge, media: Media, asked: Sequence[str]) -> Shared:
    """The prompts of questions about one medium, split into what they share and what follows."""
    if isinstance(judge, CogVLM2Judge):
        pixels = judge.processor.pixels(media)
        tokens = judge.processor.prefix(len(pixels))
        prefix = {
            "input_ids": tokens.input_ids[None],
            "token_type_ids": tokens.token_type_ids[None],
            "pixel_values": pixels,
        }
        questions = [judge.processor.text(question) for question in asked]
        return Shared(prefix, tokens.position_ids[None], int(tokens.next_position), questions)
    prefix, questions = judge.split_prompts(media, asked)
    prefix = {name: value.cpu() for name, value in prefix.items()}
    length = prefix["input_ids"].shape[1]
    pictures = whole_pictures(judge.model.config, prefix)
    check_length(judge, prefix, questions)
    if not hasattr(judge.model.base_model, "get_rope_index"):
        return Shared(prefix, torch.arange(length)[None], length, questions, pictures)
    positions, lag = judge.model.base_model.get_rope_index(**prefix)
    return Shared(prefix, positions, length + int(lag), questions, pictures)


def check_length(judge: TransformersJudge, prefix: dict[str, Tensor], questions: list[list[int]]) -> None:
    """ValueError where a question with its answer is longer than the window of sliding attention."""
    length = prefix["input_ids"].shape[1] + max(map(len, questions)) + 1
    check_window(judge.model.config, judge.name, length)


class Sharer:
    """`share` that keeps what questions about an item share, so that a further epoch neither reads nor
    processes its medium again. Keeps the first items that fit into `limit` bytes."""

    def __init__(self, judge: TransformersJudge | CogVLM2Judge, limit: float):
        self.judge = judge
        self.room = limit
        self.kept: dict[Hashable, tuple[Shared, int, int]] = {}

    def __call__(self, item: Hashable, load: Callable[[], Media], asked: Sequence[str]) -> Shared:
        """What `share` returns of the medium that `load` reads."""
        if item in self.kept:
            shared, pictures, start = self.kept[item]
            begins, questions = self._questions(pictures, asked)
            if begins == start:
                if isinstance(self.judge, TransformersJudge):
                    check_length(self.judge, shared.prefix, questions)
                return replace(shared, questions=questions)
        media = load()
        shared = share(self.judge, media, asked)
        size = sum(value.nbytes for value in (*shared.prefix.values(), shared.positions))
        if item not in self.kept and size <= self.room:
            self.room -= size
            pictures = len(media.pictures())
            own = {name: value.clone() for name, value in shared.prefix.items()}
            self.kept[item] = replace(shared, prefix=own), pictures, self._questions(pictures, asked)[0]
        return shared

    def _questions(self, pictures: int, asked: Sequence[str]) -> tuple[int, list[list[int]]]:
        if isinstance(self.judge, CogVLM2Judge):
            return 0, [self.judge.processor.text(question) for question in asked]
        return self.judge.split_questions(pictures, asked)


def answer_tokens(judge: TransformersJudge | CogVLM2Judge) -> tuple[int, int]:
    """Token ids of no and of yes as they follow a prompt; ValueError where they are not one token each."""
    if isinstance(judge, CogVLM2Judge):
        text, encode = prompt("?", judge.processor.template), judge.processor.encode
    else:
        text, encode = judge.prompt("?", 1), judge.encode
    known = {"no": judge.words.no, "yes": judge.words.yes}
    gaps = (" ", "") if text.endswith(":") else ("", " ")  # as one would write it
    found = []
    for word, spellings in known.items():
        spelled = [encode(text + gap + word) for gap in gaps]
        ids = [ids[-1] for ids in spelled if ids[:-1] == encode(text) and ids[-1] in spellings]
        if not ids:
            raise ValueError(
                f"{judge.name}: {word!r} is not a single token after its prompt, so it cannot be taught"
            )
        found.append(ids[0])
    return found[0], found[1]


@torch.inference_mode()
def check_packed(judge: TransformersJudge | CogVLM2Judge, media: Media, asked: Sequence[str]) -> None:
    """Answers of one packed sequence against the last question asked by itself; ValueError where they
    differ, since the judge would be taught something else than it is asked.
    """
    tokens = answer_tokens(judge)
    item = pack_answers(share(judge, media, asked), [tokens[0]] * len(asked))
    batch = stack([item], 0, judge.model.dtype)
    labels = batch.pop("labels")
    logits = judge.model(**{name: value.to(judge.model.device) for name, value in batch.items()}).logits
    packed = read_yes_no(logits[0, (labels[0] != IGNORED).nonzero()[-1] - 1], judge.words)
    plain = judge.answer_plainly(media, asked[-1])
    gap = max(
        (ours.cpu() - theirs[-1]).abs().item()
        for ours, theirs in zip(packed, (plain.yes_logit, plain.no_logit), strict=True)
    )
    if not gap <= EXACT[judge.model.dtype]:
        raise ValueError(
            f"{judge.name}: {type(judge.model).__name__} answers differently when questions share a sequence "
            f"(log-probabilities differ by {gap:.2g}), so it cannot be trained"
        )


@dataclass(frozen=True)
class Packed:
    """One item's sequence: [L] ids, block (question, or PREFIX), labels; positions [..., 1, L]; pictures as
    `whole_pictures` has it, [1, P].
    """

    ids: Tensor
    block: Tensor
    labels: Tensor
    positions: Tensor
    prefix: dict[str, Tensor]
    pictures: Tensor | None


def pack_answers(shared: Shared, answers: Sequence[int]) -> Packed:
    """The sequence of one item: its prefix, then each question followed by its answer token."""
    start = shared.prefix["input_ids"].shape[1]
    ids, labels, block, positions = [], [IGNORED] * start, [PREFIX] * start, []
    for index, (question, answer) in enumerate(zip(shared.questions, answers, strict=True)):
        length = len(question)
        ids += [*question, answer]
        labels += [IGNORED] * length + [answer]
        block += [index] * (length + 1)
        positions += range(shared.next_position, shared.next_position + length + 1)
    after = torch.tensor(positions).expand(*shared.positions.shape[:-1], -1)
    return Packed(
        torch.cat([shared.prefix["input_ids"][0], torch.tensor(ids)]),
        torch.tensor(block),
        torch.tensor(labels),
        torch.cat([shared.positions, after], dim=-1),
        shared.prefix,
        shared.pictures,
    )


def stack(items: Sequence[Packed], pad: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A batch as the model takes it, padded on the right; `attention_mask` is additive, [B, 1, L, L]."""
    length = max(len(item.ids) for item in items)
    block = torch.stack([_fill(item.block, length, PADDING) for item in items])
    known = [item.pictures for item in items if item.pictures is not None]
    pictures = torch.cat([_fill(item, length, -1) for item in known]) if known else None
    return {
        **_prefix_inputs(items, length),
        "input_ids": torch.stack([_fill(item.ids, length, pad) for item in items]),
        "labels": torch.stack([_fill(item.labels, length, IGNORED) for item in items]),
        "position_ids": torch.cat([_fill(item.positions, length, 0) for item in items], dim=-2),
        "attention_mask": block_mask(block, dtype, pictures),
    }


def block_mask(block: Tensor, dtype: torch.dtype, pictures: Tensor | None = None) -> Tensor:
    """Additive mask [B, 1, L, L]: each token sees, up to itself, the prefix and its own question; with
    `pictures` [B, L], as `whole_pictures` has it, a picture's tokens also see the whole of it.
    """
    same = block[:, :, None] == block[:, None, :]
    seen = (same | (block == PREFIX)[:, None, :]).tril()
    if pictures is not None:
        seen |= (pictures[:, :, None] == pictures[:, None, :]) & (pictures >= 0)[:, None, :]
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return mask[:, None]


def _prefix_inputs(items: Sequence[Packed], length: int) -> dict[str, Tensor]:
    """The inputs beside ids: those a token each are padded to `length`, the others (pixels) are put
    together."""
    inputs = {}
    for name in items[0].prefix.keys() - {"input_ids", "attention_mask"}:
        values = [item.prefix[name] for item in items]
        if values[0].shape == items[0].prefix["input_ids"].shape:
            values = [_fill(value, length, 0) for value in values]
        if len({value.shape[1:] for value in values}) > 1:
            shapes = ", ".join(sorted({str(list(value.shape[1:])) for value in values}))
            raise ValueError(f"{name}: items of one batch differ in shape ({shapes}); set micro_batch_size=1")
        inputs[name] = torch.cat(values)
    return inputs


def _fill(value: Tensor, length: int, by: int) -> Tensor:
    return torch.nn.functional.pad(value, (0, length - value.shape[-1]), value=by)
